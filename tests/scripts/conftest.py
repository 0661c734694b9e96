"""What the tests of the training scripts share: small data files and small runs."""

import json
import random

import pytest

_TOPICS = ["attention", "bucket", "chunk"]
_WORDS = [*_TOPICS, "decoder", "encoder", "gradient", "hash", "layer", "memory", "round", "token"]


def _texts(count: int, seed: int) -> list[dict[str, object]]:
    """Documents whose summary is their most frequent word, and the class of that word."""
    choose = random.Random(seed)
    rows: list[dict[str, object]] = []
    for _ in range(count):
        topic = choose.choice(_TOPICS)
        words = [topic if choose.random() < 0.5 else choose.choice(_WORDS) for _ in range(60)]
        rows.append({"document": " ".join(words), "summary": f"about {topic}", "label": topic})
    return rows


@pytest.fixture
def data_files(tmp_path):
    """Arguments that name a training, a validation and a test file, and a cache of their own."""
    arguments = ["--cache_dir", str(tmp_path / "cache")]
    for name, count in (("train", 12), ("validation", 4), ("test", 4)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, _texts(count, seed=count))), encoding="utf-8")
        arguments += [f"--{name}_file", str(path)]
    return arguments


@pytest.fixture
def small_run(tmp_path):
    """Arguments of a run of two steps on the CPU with the tiny preset."""
    return [
        *("--output_dir", str(tmp_path / "run")),
        *("--preset", "tiny", "--do_train", "--do_eval"),
        *("--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "true"),
        *("--logging_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"),
        *("--save_steps", "1", "--learning_rate", "1e-3", "--disable_tqdm", "true"),
    ]


@pytest.fixture
def foreign_checkpoint(tmp_path):
    """The directory of a model that neither summarizes nor is a Reformer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)
