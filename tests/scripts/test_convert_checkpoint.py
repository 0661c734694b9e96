"""The command writes a complete checkpoint of the same function, or says what is wrong."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import reformer_hf
from reformer_hf.tokenization import byte_tokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FIELDS = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "attn_layers": ["local", "lsh"],
    "feed_forward_size": 40,
    "axial_pos_shape": [8, 16],
    "axial_pos_embds_dim": [8, 24],
    "max_position_embeddings": 128,
    "lsh_attn_chunk_length": 16,
    "local_attn_chunk_length": 16,
    "num_buckets": 8,
    "is_decoder": True,
}

Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the script with arguments, in a directory with the checkpoint `old`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    main = importlib.import_module("convert_checkpoint").main
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    original().save_pretrained("old")

    def call(*arguments: str) -> int:
        return int(main(list(arguments)))

    return call


def original() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.ReformerModelWithLMHead(transformers.ReformerConfig(**FIELDS))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def test_the_converted_model_is_the_one_that_opens_directly(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--checkpoint", "old", "--output_dir", "new/model") == 0
    converted = transformers.AutoModelForCausalLM.from_pretrained("new/model")
    direct = reformer_hf.ReformerForCausalLM.from_pretrained("old")
    assert type(converted) is reformer_hf.ReformerForCausalLM
    ids = torch.randint(2, 258, (2, 100))
    with torch.no_grad():
        assert torch.equal(converted.eval()(ids).logits, direct.eval()(ids).logits)
    report = capsys.readouterr().out
    assert report.startswith("ReformerForCausalLM, ")
    assert "  attention_pattern: 'chunk'\n" in report
    assert "  num_buckets: 8 -> [8]\n" in report
    assert "hidden states of 64 random tokens differ from transformers' by " in report
    assert "lm_head.bias, which transformers 5 stores but does not add" in report
    assert "--byte_level --layout enwik8" in report


def test_the_window_pattern_is_strictly_causal(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = ("--attention_pattern", "window")
    assert command("--checkpoint", "old", "--output_dir", "new", *pattern) == 0
    model = reformer_hf.ReformerForCausalLM.from_pretrained("new").eval()
    ids = torch.randint(2, 258, (1, 100))
    edited = torch.cat((ids[:, :80], ids[:, 80:].flip(1)), dim=1)
    with torch.no_grad():
        change = model(ids).logits[:, :80] - model(edited).logits[:, :80]
    assert float(change.abs().max()) <= 1e-5
    assert "  num_buckets: 8 -> None\n" in capsys.readouterr().out


def test_pickled_weights_are_converted(command: Command) -> None:
    torch.save(load_file("old/model.safetensors"), "old/pytorch_model.bin")
    expected = reformer_hf.ReformerForCausalLM.from_pretrained("old").state_dict()
    Path("old/model.safetensors").unlink()
    assert command("--checkpoint", "old", "--output_dir", "new") == 0
    weights = load_file("new/model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.items())


def test_another_head_is_named_as_new(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    head = ("--model_class", "ReformerForSequenceClassification")
    assert command("--checkpoint", "old", "--output_dir", "new", *head) == 0
    report = capsys.readouterr().out
    assert "new, random: classifier.dense.weight\n" in report
    assert "left out: lm_head.weight\n" in report
    assert json.loads(Path("new/config.json").read_text())["architectures"] == [head[1]]


def test_the_tokenizer_comes_along(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    byte_tokenizer("enwik8").save_pretrained("old")
    assert command("--checkpoint", "old", "--output_dir", "new") == 0
    assert "tokenizer copied: tokenizer.json, tokenizer_config.json" in capsys.readouterr().out
    tokenizer = transformers.AutoTokenizer.from_pretrained("new")
    assert tokenizer("a").input_ids == byte_tokenizer("enwik8")("a").input_ids


def test_an_output_directory_with_files_is_left_alone(command: Command) -> None:
    Path("new").mkdir()
    Path("new/notes.txt").write_text("mine")
    assert command("--checkpoint", "old", "--output_dir", "new") == 2
    assert [path.name for path in Path("new").iterdir()] == ["notes.txt"]


def truncate_weights() -> None:
    file = Path("old/model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_weight() -> None:
    weights = load_file("old/model.safetensors")
    weights.pop("lm_head.decoder.weight")
    save_file(weights, "old/model.safetensors", metadata={"format": "pt"})


def change_config(**fields: object) -> None:
    file = Path("old/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--checkpoint", "/no/such/place"], "expected a directory or a Hub id"),
        (None, ["--checkpoint", "old/config.json"], "expected a directory or a Hub id"),
        (None, ["--checkpoint", "someone/else"], "error: "),
        (None, ["--attention_pattern", "rings"], "expected one of ['window', 'chunk'], got 'ring"),
        (None, ["--model_class", "GPT2Model"], "model_class: expected one of ['ReformerModel', "),
        (lambda: change_config(model_type="bert"), [], "expected model_type 'reformer', got 'bert"),
        (lambda: change_config(hidden_size=34), [], "got"),
        (lambda: change_config(feed_forward_size=48), [], "expected weights that fit"),
        (lambda: Path("old/config.json").unlink(), [], "expected a config.json"),
        (lambda: Path("old/model.safetensors").unlink(), [], "model.safetensors"),
        (truncate_weights, [], "model.safetensors is not a whole safetensors file"),
        (drop_a_weight, [], "expected weights for ['lm_head.weight'], got none"),
    ],
    ids=[
        *("no-directory", "a-file", "not-on-the-hub", "unknown-pattern", "unknown-class"),
        *("another-model", "impossible-width", "another-width", "no-config", "no-weights"),
        *("truncated", "a-weight-missing"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_and_nothing_is_written(
    spoil: Callable[[], None] | None,
    arguments: list[str],
    message: str,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if spoil is not None:
        spoil()
    before = set(Path().iterdir())
    given = arguments if "--checkpoint" in arguments else ["--checkpoint", "old", *arguments]
    capsys.readouterr()
    assert command(*given, "--output_dir", "new") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert set(Path().iterdir()) == before
