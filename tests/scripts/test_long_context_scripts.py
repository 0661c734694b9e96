"""Aligning a pretrained model with sparse attention, and measuring it, on a tiny model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import align_attention
import evaluate_long_context
import reformer_hf
from reformer_hf import ReformerConfig, ReformerForCausalLM, byte_tokenizer
from tests.pretrained.conftest import tiny_llama
from training.alignment import (
    attention_modules,
    held_out_loss,
    matching_loss,
    token_blocks,
)
from training.long_context import (
    answer_at_once,
    answer_by_generation,
    attending,
    contenders,
    count_words,
    make_passkeys,
    rare_repeats,
    window_with_as_many_keys,
)

LENGTH = 300
TEXT = "".join(f"Line {i} of a story about nothing in particular.\n" for i in range(400))


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = tiny_llama(vocab_size=len(byte_tokenizer(append_eos=False))).eval()
    reformer_hf.configure_attention(model, local_window=32, bucket_window=16)
    return model


@pytest.fixture
def folder(model: LlamaForCausalLM, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer(append_eos=False).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_blocks_come_from_all_over_a_long_text(folder: Path) -> None:
    tokenizer = byte_tokenizer(append_eos=False)
    blocks = token_blocks(str(folder / "text.txt"), tokenizer, 50, 4, seed=0)["input_ids"]
    assert [len(block) for block in blocks] == [50] * 4
    texts = sorted(TEXT.index(tokenizer.decode(block)) for block in blocks)
    assert texts[0] < len(TEXT) // 4
    assert texts[-1] > len(TEXT) // 2
    with pytest.raises(ValueError, match="at least one block of 99999 tokens"):
        token_blocks(str(folder / "text.txt"), tokenizer, 99_999, 4, seed=0)


def test_matching_is_zero_where_both_attend_alike_and_has_a_gradient_where_not(
    model: LlamaForCausalLM,
) -> None:
    ids = torch.randint(0, 200, (1, LENGTH))
    original = copy.deepcopy(model)
    original.set_attn_implementation("sdpa")
    model.set_attn_implementation("reformer")
    reformer_hf.configure_attention(model, local_window=LENGTH)
    assert matching_loss(model, original, ids).item() < 1e-8
    reformer_hf.configure_attention(model, local_window=16)
    loss = matching_loss(model, original, ids)
    loss.backward()
    assert loss.item() > 1e-4
    for name, module in attention_modules(model).items():
        assert module.q_proj.weight.grad is not None, name
    assert model.lm_head.weight.grad is None


def test_alignment_lowers_the_loss_and_saves_an_ordinary_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(folder / "text.txt")
    asked = [
        *("--model", str(folder / "model"), "--train_file", text, "--validation_file", text),
        *("--length", str(LENGTH), "--match_steps", "2", "--max_steps", "8"),
        *(
            "--validation_blocks",
            "1",
            "--attention_settings",
            "num_hashes=2",
            "--learning_rate",
            "1e-2",
        ),
        *("--per_device_train_batch_size", "1", "--report_to", "none", "--use_cpu", "True"),
        *("--output_dir", str(folder / "aligned")),
    ]
    found = align_attention.align(asked)
    assert found["aligned"] < found["start"] - 0.3
    printed = capsys.readouterr().out
    assert "Matching attention outputs for 2 steps" in printed
    assert "Training as a language model" in printed
    aligned = AutoModelForCausalLM.from_pretrained(folder / "aligned")
    assert aligned.config.reformer_attention["num_hashes"] == 2
    tokenizer = byte_tokenizer(append_eos=False)
    block = token_blocks(text, tokenizer, LENGTH, 1, seed=0)["input_ids"]
    assert held_out_loss(aligned, block, "reformer") == pytest.approx(found["aligned"], abs=1e-4)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "max_steps: expected the steps"),
        (["--max_steps", "3", "--length", "20"], "length: expected more than 32 tokens"),
        (["--max_steps", "3", "--match_steps", "-1"], "match_steps: expected 0 or more"),
        (["--max_steps", "3", "--attention_settings", "num_hashes=-1"], "num_hashes"),
    ],
    ids=["no steps", "short", "negative", "settings"],
)
def test_alignment_refuses_what_cannot_work(folder: Path, extra: list[str], words: str) -> None:
    text = str(folder / "text.txt")
    asked = ["--model", str(folder / "model"), "--train_file", text, "--validation_file", text]
    asked += ["--output_dir", str(folder / "out"), "--report_to", "none", "--use_cpu", "True"]
    with pytest.raises(ValueError, match=words):
        align_attention.align([*asked, *extra])


def test_a_window_is_matched_by_its_mean_number_of_keys() -> None:
    for length, sinks in ((100, 0), (1000, 4)):
        for seen in (10, 50, length):
            keys = sum(min(i + 1, seen) for i in range(length)) / length
            assert window_with_as_many_keys(keys, length, sinks) == max(1, seen - sinks)


def test_contenders_see_as_many_keys_and_leave_the_model_as_it_was(
    model: LlamaForCausalLM,
) -> None:
    ids = torch.randint(0, 200, (1, LENGTH))
    before = dict(reformer_hf.configure_attention(model).to_dict())
    found = contenders(model, ids, [2])
    assert [c.name for c in found] == ["full", "lsh 2", "local = lsh 2"]
    assert found[2].changes["local_window"] > 32
    with attending(model, found[1]):
        assert model.config._attn_implementation == "reformer"
        assert model.config.reformer_attention["num_hashes"] == 2
    assert model.config._attn_implementation == "sdpa"
    assert model.config.reformer_attention == before


def test_passkeys_are_hidden_at_every_depth_and_asked_for_at_the_end() -> None:
    tokenizer = byte_tokenizer(append_eos=False)
    keys = make_passkeys(TEXT, tokenizer, 600, 3, seed=1)
    for key in keys:
        text, digits = tokenizer.decode(key.prompt[0]), tokenizer.decode(key.answer).strip()
        assert key.prompt.shape == (1, 600)
        assert text.endswith("The pass key is")
        assert f"The pass key is {digits}. Remember it." in text
    places = [tokenizer.decode(k.prompt[0]).index("Remember it. ") for k in keys]
    assert places == sorted(places)
    with pytest.raises(ValueError, match="tokens of it"):
        make_passkeys("short", tokenizer, 600, 1, seed=1)


def test_both_ways_to_answer_agree_in_full_attention(model: LlamaForCausalLM) -> None:
    (key,) = make_passkeys(TEXT, byte_tokenizer(append_eos=False), 400, 1, seed=1)
    right = answer_by_generation(model, key)
    assert right.shape == key.answer.shape
    # As long as everything before is right, one pass predicts what is written.
    assert bool(answer_at_once(model, key)[0]) == bool(right[0])


def test_repeats_are_tokens_of_rare_words_that_come_again_after_a_while() -> None:
    pieces = ["Zan", "zibar", " is", " far", ".", " The", " way", " to", " ZANZ", "ibar", " The"]
    pieces += [" way", " Zanz", "ibar", " is", " not", " the", " way", " home", "."]
    counts = count_words("Zanzibar " + "away " * 999)
    assert counts["zanzibar"] == 1

    def found(distance: int, rarest: float) -> list[int]:
        mask = rare_repeats(pieces, counts, distance=distance, rarest=rarest)
        return mask.nonzero().flatten().tolist()

    # Seven tokens from the end of the first to the second, three from there to the third.
    assert found(6, 0.01) == [8, 9]
    assert found(2, 0.01) == [8, 9, 12, 13]
    assert found(7, 0.01) == []
    assert found(2, 0.001) == []  # one word of a thousand is not below one in a thousand
    # What has a longer lower case keeps its place.
    assert rare_repeats(["İ", "word", " word"], {}, distance=0, rarest=1.0).tolist() == [False] * 3
    mask = rare_repeats(["İİ ", "word", " word"], {"x": 1}, distance=0, rarest=1.0)
    assert mask.tolist() == [False, False, True]


@pytest.mark.parametrize("kind", ["loss", "passkey"])
def test_results_are_written_for_every_length_and_contender(folder: Path, kind: str) -> None:
    asked = [
        *(kind, "--model", str(folder / "model"), "--file", str(folder / "text.txt")),
        *("--lengths", "300", "400", "--rounds", "2", "--samples", "2"),
        *("--output", str(folder / "results" / kind)),
    ]
    rows = evaluate_long_context.evaluate(asked)
    assert len(rows) == 2 * 3
    document = json.loads((folder / "results" / f"{kind}.json").read_text(encoding="utf-8"))
    assert document["rows"] == rows
    report = (folder / "results" / f"{kind}.md").read_text(encoding="utf-8")
    assert "local = lsh 2" in report
    if kind == "loss":
        assert rows[0]["above_full"] == 0.0
        # In this text no word is rare.
        assert rows[0]["rare_repeats"] == 0
        assert "loss_at_rare_repeats" not in rows[0]
    asked[asked.index("400")] = "5000"
    with pytest.raises(ValueError, match="at most the model's 1024 positions"):
        evaluate_long_context.evaluate(asked)


@pytest.mark.parametrize("kind", ["loss", "passkey"])
def test_models_of_the_family_are_compared_as_they_were_made(folder: Path, kind: str) -> None:
    tokenizer = byte_tokenizer(append_eos=False)
    for name, layers in (("local", ["local"]), ("lsh", ["local", "lsh"])):
        config = ReformerConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_attention_heads=2,
            attention_head_size=8,
            feed_forward_size=16,
            attn_layers=layers,
            max_position_embeddings=512,
        )
        ReformerForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    asked = [
        *(kind, "--model", str(folder / "local"), str(folder / "lsh")),
        *("--file", str(folder / "text.txt"), "--lengths", "300", "--samples", "1"),
        *("--output", str(folder / "results" / kind)),
    ]
    rows = evaluate_long_context.evaluate(asked)
    assert [(row["model"], row["attention"]) for row in rows] == [
        ("local", "its own"),
        ("lsh", "its own"),
    ]
    document = json.loads((folder / "results" / f"{kind}.json").read_text(encoding="utf-8"))
    assert document["settings"] == {"local": ["local"], "lsh": ["local", "lsh"]}
    if kind == "loss":
        assert all(4 < row["loss"] < 7 and "above_full" not in row for row in rows)
    with pytest.raises(ValueError, match="model: expected different names"):
        evaluate_long_context.evaluate(
            [*asked, "--model", str(folder / "lsh"), str(folder / "lsh")]
        )
