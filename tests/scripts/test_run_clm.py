"""Language modelling: blocks, and small runs end to end."""

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_clm
from reformer_hf import ReformerForCausalLM
from reformer_hf.tokenization import byte_tokenizer
from tests.ecosystem.launch import ROOT, launch_sharing
from training.language_modeling import collate_blocks, hold_out_end, make_blocks, pieces

TEXT = "".join(f"Line {number} of a text about buckets.\n" for number in range(60))


@pytest.fixture
def text_files(tmp_path):
    """A plain and a gzipped text file."""
    (tmp_path / "train.txt").write_text(TEXT * 3)
    (tmp_path / "validation.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    return [
        *("--train_file", str(tmp_path / "train.txt")),
        *("--validation_file", str(tmp_path / "validation.txt.gz")),
        *("--block_size", "64", "--sample_prompt_length", "16", "--sample_length", "4"),
    ]


@given(text=st.text(alphabet="ab\n", max_size=200), size=st.integers(1, 20))
def test_pieces_are_short_and_make_up_the_text(text, size):
    found = list(pieces(text, size))
    assert "".join(found) == text
    assert all(0 < len(piece) <= size for piece in found)


@given(
    documents=st.lists(st.text(alphabet="ab", min_size=1, max_size=30), min_size=1, max_size=5),
    percentage=st.integers(1, 99),
)
def test_held_out_end_is_the_rest_of_the_text(documents, percentage):
    train, validation = hold_out_end(documents, percentage)
    whole = "".join(documents)
    assert "".join(train) + "".join(validation) == whole
    assert len("".join(train)) == len(whole) * (100 - percentage) // 100


def test_blocks_hold_the_text_in_order():
    tokenizer = byte_tokenizer(append_eos=False)
    blocks = make_blocks(["abcd", "ef"], tokenizer, 3, None, "train")
    ids = np.concatenate(blocks.data["input_ids"])
    assert tokenizer.decode(ids) == "abcd<eos>e"  # "f<eos>" is a rest shorter than a block
    assert blocks.tokens_per_byte == pytest.approx(8 / 6)
    assert len(make_blocks(["abcdefgh"], tokenizer, 3, 1, "train").data) == 1


def test_no_more_text_is_encoded_than_the_blocks_need(monkeypatch):
    tokenizer = byte_tokenizer(append_eos=False)
    given = []
    encode = type(tokenizer).__call__

    def counted(self, text, **options):
        given.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    documents = ["a line of a text\n" * 50_000] * 3
    blocks = make_blocks(documents, tokenizer, 1000, 5, "train")
    assert len(blocks.data) == 5
    assert blocks.data["input_ids"][4] == [*tokenizer(documents[0][4000:5000]).input_ids]
    assert sum(given) < 100_000
    assert blocks.tokens_per_byte == pytest.approx(1.0)


def test_text_shorter_than_a_block_is_refused():
    with pytest.raises(ValueError, match="block_size: expected at most the 4 tokens"):
        make_blocks(["abc"], byte_tokenizer(append_eos=False), 5, None, "train")


def test_every_token_of_a_block_is_a_label():
    batch = collate_blocks([{"input_ids": [1, 0, 2]}, {"input_ids": [3, 4, 5]}])
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 0, 2], [3, 4, 5]]


def test_run_leaves_a_complete_model_directory(text_files, small_run, tmp_path, capsys):
    assert run_clm.main([*text_files, *small_run]) == 0
    run = tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(run)
    assert isinstance(model, ReformerForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert tokenizer("a").input_ids == [ord("a") + 7]  # a prompt does not end the text
    metrics = json.loads((run / "all_results.json").read_text())
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    expected = metrics["eval_loss"] / math.log(2) * (len(TEXT) + 1) / len(TEXT)
    assert metrics["eval_bits_per_byte"] == pytest.approx(expected)
    assert 0 < metrics["eval_xz_bits_per_byte"] < 8
    card = (run / "README.md").read_text()
    assert "bits per byte" in card
    assert "xz compressor" in card
    assert (run / "loss_curve.png").is_file()
    assert capsys.readouterr().out.count("output:") == 3


def test_two_processes_that_share_every_text_train_as_one_does(text_files, small_run, tmp_path):
    options = [*text_files, *small_run, "--sample_length", "4", "--block_size", "63"]
    run_clm.model_language(options)
    alone = json.loads((tmp_path / "run" / "all_results.json").read_text())
    shared = [*options, "--sequence_parallel_size", "2", "--output_dir", str(tmp_path / "shared")]
    output = launch_sharing(ROOT / "scripts" / "run_clm.py", 2, *shared)
    assert "output:" in output
    found = json.loads((tmp_path / "shared" / "all_results.json").read_text())
    for name in ("train_loss", "eval_loss"):
        assert found[name] == pytest.approx(alone[name], rel=1e-6)


def test_validation_text_is_cut_off_where_none_is_given(small_run, tmp_path):
    rows = [{"text": TEXT}, {"text": TEXT}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    options = ["--block_size", "64", "--validation_split_percentage", "10", "--sample_length", "0"]
    files = ["--train_file", str(path), "--cache_dir", str(tmp_path / "cache")]
    run_clm.model_language([*files, *options, *small_run, "--vocab_size", "300"])
    metrics = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert metrics["train_samples"] > 4 * metrics["eval_samples"] > 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == 300


def test_interrupted_run_resumes_at_the_next_step(text_files, small_run, tmp_path):
    run_clm.model_language([*text_files, *small_run])
    run_clm.model_language([*text_files, *small_run, "--max_steps", "3"])
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--block_size", "1"], "block_size: expected at least 2"),
        (["--block_size", "99999"], "block_size: expected at most the"),
        (["--tokenizer_name", "/no/such/tokenizer"], "tokenizer_name: cannot load a tokenizer"),
        (["--do_predict"], "test_file: expected a file"),
        (["--config_overrides", "hidden_size=-1"], "hidden_size"),
    ],
)
def test_runs_that_cannot_work_are_refused(text_files, small_run, capsys, arguments, expected):
    assert run_clm.main([*text_files, *small_run, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_empty_text_and_mixed_kinds_are_refused(small_run, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "x"}))
    empty = ["--train_file", str(tmp_path / "empty.txt")]
    rows = ["--train_file", str(tmp_path / "rows.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    mixed = [*rows, "--validation_file", str(tmp_path / "empty.txt")]
    training = [argument for argument in small_run if argument != "--do_eval"]
    training = [*training, "--eval_strategy", "no"]
    for files, expected in (
        (empty, "got an empty file"),
        (rows, "text_column: expected one of ['body'], got 'text'"),
        (mixed, "expected files of one kind"),
    ):
        assert run_clm.main([*files, *training]) == 2
        assert expected in capsys.readouterr().err
