"""Summaries by causal language models: prompts, batches, loss, and small runs end to end."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import reformer_hf
import run_summarization
import summarize
from reformer_hf import byte_tokenizer
from training.causal_summarization import (
    LeftPadding,
    NoRepeatedNGrams,
    Prompt,
    summary_loss,
)

IGNORED = -100
LENGTHS = ["--max_source_length", "200", "--max_target_length", "16"]


def tokenizer_with_chat():
    tokenizer = byte_tokenizer(append_eos=False)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    return tokenizer


@pytest.fixture
def causal_checkpoint(tmp_path):
    """The directory of a small Llama with random weights."""
    tokenizer = tokenizer_with_chat()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    path = tmp_path / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def causal_run(causal_checkpoint, data_files, tmp_path):
    """Arguments of a run of two steps in sparse attention."""
    return [
        *data_files,
        *LENGTHS,
        *("--model_name_or_path", causal_checkpoint, "--do_train", "--do_eval"),
        *("--attn_implementation", "reformer"),
        *("--attention_settings", "local_window=32,num_hashes=1,bucket_window=8"),
        *("--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true"),
        *("--logging_steps", "1", "--learning_rate", "1e-3", "--disable_tqdm", "true"),
        *("--output_dir", str(tmp_path / "run"), "--report_to", "none"),
    ]


# ---- prompts ----


def test_a_prompt_keeps_its_end_and_cuts_the_document():
    tokenizer = tokenizer_with_chat()
    prompt = Prompt.from_template(tokenizer, "Read: {document}\nSummary:")
    document = tokenizer("abcdefghij", add_special_tokens=False).input_ids
    whole = prompt.around(document, 200)
    assert tokenizer.decode(whole) == "Read: abcdefghij\nSummary:"
    cut = prompt.around(document, len(whole) - 4)
    assert tokenizer.decode(cut) == "Read: abcdef\nSummary:"
    with pytest.raises(ValueError, match=r"max_source_length: expected more than the prompt's 15"):
        prompt.around(document, 15)


def test_a_chat_prompt_is_the_tokenizers_chat_template():
    tokenizer = tokenizer_with_chat()
    prompt = Prompt.from_template(tokenizer, "Sum up: {document}", chat=True)
    document = tokenizer("text", add_special_tokens=False).input_ids
    said = [{"role": "user", "content": "Sum up: text"}]
    expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert prompt.around(document, 200) == list(expected)
    with pytest.raises(ValueError, match="chat_prompt: expected a tokenizer with a chat template"):
        Prompt.from_template(byte_tokenizer(), "{document}", chat=True)


@pytest.mark.parametrize("template", ["Summary:", "{document} and {document}"])
def test_a_template_has_one_document(template):
    with pytest.raises(ValueError, match=r"prompt_template: expected \{document\} once"):
        Prompt.from_template(byte_tokenizer(), template)


# ---- batches and loss ----


def rows():
    return [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORED, IGNORED, 7, 8]},
        {"input_ids": [9, 8], "labels": [IGNORED, 8]},
    ]


def test_rows_end_together_and_their_prompts_too():
    collate = LeftPadding(0)
    batch = collate(rows())
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [0, 0, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED] * 3 + [8]]
    prompts = collate.prompts(batch)
    assert prompts["input_ids"].tolist() == [[5, 6], [0, 9]]
    assert prompts["attention_mask"].tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("items", [None, 10], ids=["own items", "items of a step"])
def test_the_loss_of_the_last_logits_is_that_of_all(causal_checkpoint, items):
    model = AutoModelForCausalLM.from_pretrained(causal_checkpoint)
    batch = LeftPadding(0)(rows())
    expected = model(**batch, num_items_in_batch=items).loss
    labels = batch.pop("labels")
    outputs = model(**batch, logits_to_keep=3)
    found = summary_loss(outputs, labels, items)
    torch.testing.assert_close(found, expected)


def test_what_the_document_says_may_be_quoted_but_not_twice():
    processor = NoRepeatedNGrams(2, prompt_length=3)
    scores = torch.zeros(1, 10)
    quoted = processor(torch.tensor([[1, 2, 3, 1]]), scores.clone())
    assert torch.isfinite(quoted).all()
    again = processor(torch.tensor([[1, 2, 3, 1, 2, 4, 1]]), scores.clone())
    assert again.isinf().nonzero().tolist() == [[0, 2]]


# ---- runs ----


def test_a_run_trains_in_sparse_attention_and_keeps_how_it_asked(causal_run, tmp_path, capsys):
    asked = ["--prompt_template", "Document: {document} Topic:", "--do_predict"]
    asked += ["--val_max_source_length", "300"]
    assert run_summarization.main([*causal_run, *asked]) == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "all_results.json").read_text())
    for name in ("eval_loss", "predict_loss", "predict_rouge1", "predict_lead_rouge1"):
        assert math.isfinite(metrics[name])
    model = AutoModelForCausalLM.from_pretrained(run)
    assert model.config.reformer_attention["local_window"] == 32
    assert model.config.summarization["prompt_template"] == "Document: {document} Topic:"
    assert model.config.summarization["max_source_length"] == 300
    assert model.generation_config.max_new_tokens == 16
    card = (run / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "Document: {document} Topic:" in card
    assert "It reads up to 300 tokens" in card
    assert "| longest training document | 200 tokens |" in card
    assert "Sample 1" in capsys.readouterr().out
    generated = (run / "predict_generated.jsonl").read_text().splitlines()
    assert len(generated) == 4


def test_outputs_before_training_stand_next_to_those_after_it(causal_run, tmp_path, capsys):
    more = ["--predict_before_training", "--time_full_attention", "--do_predict"]
    metrics = run_summarization.summarize([*causal_run, *more])
    assert 0 <= metrics["predict_untrained_rouge1"] <= 100
    assert "eval_untrained_rouge1" not in metrics
    shown = capsys.readouterr().out
    assert "model before training" in shown
    assert "before training:" in shown
    assert "The same in full attention: 0." in shown
    assert "The same in full attention" in (tmp_path / "run" / "README.md").read_text()
    # What is trained stays in the attention that was asked for.
    assert metrics["predict_loss"] > 0


def test_more_training_makes_the_summaries_right(causal_run, tmp_path):
    more = ["--max_steps", "120", "--learning_rate", "1e-2", "--per_device_train_batch_size", "6"]
    # A new model, trained in sparse attention alone, has to decode in it too.
    settings = "local_window=32,num_hashes=1,bucket_window=8,sparse_decoding=true"
    more += ["--attention_settings", settings]
    metrics = run_summarization.summarize([*causal_run, *more])
    # All summaries begin alike, so that a constant reaches two thirds of it.
    assert metrics["eval_rouge1"] >= metrics["eval_constant_rouge1"]
    assert metrics["eval_loss"] < 1.0


def test_a_run_that_goes_on_keeps_its_attention(causal_run, tmp_path, caplog):
    run_summarization.summarize([*causal_run, "--save_steps", "1"])
    shorter = [*causal_run]
    for name in ("--attn_implementation", "--attention_settings", "--model_name_or_path"):
        at = shorter.index(name)
        del shorter[at : at + 2]
    run_summarization.summarize([*shorter, "--max_steps", "3"])
    assert "attn_implementation: reformer, with which the run began" in caplog.text
    found = [x for x in causal_run if x != "reformer"]
    found[found.index("--attn_implementation")] = "--attn_implementation=sdpa"
    at = found.index("--attention_settings")
    del found[at : at + 2]
    with pytest.raises(ValueError, match="attn_implementation: expected 'reformer'"):
        run_summarization.summarize([*found, "--max_steps", "4"])


def without(arguments, *names):
    """Arguments without some of them and their values."""
    left = list(arguments)
    for name in names:
        at = left.index(name)
        del left[at : at + 2]
    return left


def test_adapters_are_trained_alone_and_end_in_an_ordinary_model(causal_run, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").state_dict()
    options = ["--lora_rank", "2", "--save_steps", "1", "--lr_scheduler_type", "constant"]
    run_summarization.summarize([*causal_run, *options, "--max_steps", "2"])
    run = tmp_path / "run"
    assert (run / "checkpoint-2" / "adapter_model.safetensors").stat().st_size < 30_000
    assert not (run / "adapter_config.json").exists()
    after = AutoModelForCausalLM.from_pretrained(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    # The rest of a run that was cut off gives what the whole of it gives.
    of_the_model = ("--model_name_or_path", "--attn_implementation", "--attention_settings")
    going_on = without(causal_run, *of_the_model)
    run_summarization.summarize([*going_on, *options[2:], "--max_steps", "3"])
    whole = [*without(causal_run, "--output_dir"), "--output_dir", str(tmp_path / "whole")]
    run_summarization.summarize([*whole, *options, "--max_steps", "3"])
    continued, expected = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("run", "whole")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(continued[name], weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora_rank", "0"], "lora_rank: expected a positive integer, got 0"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor: expected 0"),
        (["--forced_bos_token", "x"], "forced_bos_token: expected none"),
        (["--max_source_length", "10"], "max_source_length: expected more than the prompt's"),
        (["--prompt_template", "Sum up"], "prompt_template: expected {document} once, got it 0"),
        (["--max_source_length", "600"], "max_source_length: expected at most 512"),
        (["--predict_before_training"], "predict_before_training: expected --do_train"),
        (["--time_full_attention", "--do_train", "false"], "time_full_attention: expected"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_what_a_causal_model_cannot_do_is_refused(causal_run, options, message, capsys):
    assert run_summarization.main([*causal_run, *options]) == 2
    assert message in capsys.readouterr().err


# ---- summarize.py ----


def test_documents_in_summaries_out(causal_run, tmp_path, capsys, monkeypatch):
    run_summarization.summarize([*causal_run, "--prompt_template", "Read {document} Topic:"])
    page = tmp_path / "page.html"
    page.write_text("<html><head><title>x</title></head><p>About <b>hash</b>ing</p></html>")
    text = tmp_path / "long.txt"
    text.write_text("word " * 200)
    capsys.readouterr()
    found = summarize.summarize([str(tmp_path / "run"), str(page), str(text)])
    shown = capsys.readouterr()
    assert [x.name for x in found] == [str(page), str(text)]
    assert found[0].read == found[0].total == len("About hashing")
    room = 200 - len("Read ") - len(" Topic:")
    assert (found[1].read, found[1].total) == (room, 1000)
    assert f"read {room:,} of 1,000 tokens" in shown.err
    assert f"== {page}" in shown.out


def test_a_sequence_to_sequence_model_summarizes_too(data_files, small_run, tmp_path, capsys):
    lengths = ["--max_source_length", "48", "--max_target_length", "8", "--vocab_size", "300"]
    run_summarization.summarize([*data_files, *small_run, *lengths])
    text = tmp_path / "a.txt"
    text.write_text("attention " * 100)
    (found,) = summarize.summarize([str(tmp_path / "run"), str(text), "--max_new_tokens", "3"])
    assert found.read == 48
    assert found.total > 48


def test_bad_documents_and_models_are_refused(causal_checkpoint, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9".encode("latin-1"))
    for arguments, message in (
        ([causal_checkpoint, str(empty)], "document: expected text in"),
        ([causal_checkpoint, str(latin)], "expected UTF-8 text in"),
        ([causal_checkpoint, str(tmp_path / "no.txt")], "document: expected a file at"),
        ([causal_checkpoint, str(tmp_path / "x.docx")], "document: expected an ending of"),
        ([causal_checkpoint], "the following arguments are required: files"),
        ([str(tmp_path / "nothing"), __file__], "model: cannot load"),
        ([causal_checkpoint, __file__, "--max_new_tokens", "0"], "max_new_tokens: expected"),
    ):
        assert summarize.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_model_reads_in_the_attention_in_which_it_was_trained(causal_checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(causal_checkpoint, attn_implementation="reformer")
    reformer_hf.configure_attention(model, local_window=32)
    model.save_pretrained(tmp_path / "long")
    AutoTokenizer.from_pretrained(causal_checkpoint).save_pretrained(tmp_path / "long")
    for name, options, expected in (
        (causal_checkpoint, {}, "sdpa"),
        (str(tmp_path / "long"), {}, "reformer"),
        (str(tmp_path / "long"), {"attn_implementation": "sdpa"}, "sdpa"),
    ):
        config = summarize.Summarizer(name, options).model.config
        assert config._attn_implementation == expected
