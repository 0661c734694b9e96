"""lm-eval-harness scores a local checkpoint on a local task, and gets our own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from reformer_hf import ReformerForCausalLM, byte_tokenizer
from tests.models.builders import HEAD_OF

QUESTIONS = [
    {"question": f"after {word} comes", "choices": ["nothing", "more of it"], "answer": index % 2}
    for index, word in enumerate(["one", "two", "a longer word", "four", "five"])
]
TEXTS = [{"text": "a text about buckets " * count} for count in (1, 3, 6)]
TASKS = {
    "local_choice": """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
""",
    "local_text": """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny byte-level model with its tokenizer.

    lm-eval pads a batch without saying so in a mask, and where the number of buckets is left to the
    length of the input, padding counts. A number that is set gives every text the same score in any
    company.
    """
    tokenizer = byte_tokenizer(append_eos=False)
    model = HEAD_OF["causal_lm"].build(vocab_size=len(tokenizer), num_buckets=8)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def score(name: str, rows: list[dict[str, object]], checkpoint: Path, tmp_path: Path) -> float:
    """What lm-eval says of its only metric."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = TASKS[name].format(file=json.dumps(str(file)), cache=json.dumps(str(tmp_path / "cache")))
    (folder / f"{name}.yaml").write_text(task)
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(checkpoint), device="cpu", batch_size=2, dtype="float32"),
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    [value] = [
        v for k, v in found["results"][name].items() if k.endswith(",none") and "err" not in k
    ]
    return float(value)


@torch.no_grad()
def own_log_likelihood(checkpoint: Path, context: str, text: str) -> float:
    """`log p(text | context)`; in place of an empty context stands the first special token."""
    tokenizer = byte_tokenizer(append_eos=False)
    model = ReformerForCausalLM.from_pretrained(checkpoint).eval()
    before = tokenizer(context).input_ids or [tokenizer.bos_token_id]
    ids = torch.tensor([before + tokenizer(text).input_ids])
    scores = model(ids).logits[0, :-1].log_softmax(-1)
    chosen = scores.gather(1, ids[0, 1:, None]).squeeze(1)
    return float(chosen[len(before) - 1 :].sum())


def test_accuracy_of_multiple_choice_is_ours(checkpoint: Path, tmp_path: Path) -> None:
    hits = []
    for row in QUESTIONS:
        likely = [own_log_likelihood(checkpoint, row["question"], f" {c}") for c in row["choices"]]
        hits.append(likely.index(max(likely)) == row["answer"])
    found = score("local_choice", QUESTIONS, checkpoint, tmp_path)
    assert found == pytest.approx(sum(hits) / len(hits))


def test_bits_per_byte_of_texts_are_ours(checkpoint: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in TEXTS]
    total = sum(own_log_likelihood(checkpoint, "", text) for text in texts)
    expected = -total / sum(len(text.encode()) for text in texts) / math.log(2)
    found = score("local_text", TEXTS, checkpoint, tmp_path)
    assert found == pytest.approx(expected, rel=1e-4)
