"""Pretrained models in sparse attention, in the hands of the tools that people train with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import reformer_hf
from reformer_hf.ops.hybrid_attention import hybrid_attention
from reformer_hf.pretrained import attention_interface
from tests.ecosystem.launch import launch_two
from tests.pretrained.conftest import WINDOW, tiny_bart, token_ids
from tests.pretrained.recipes import ROWS, sparse_llama, training_rows

PROGRAMS = Path(__file__).resolve().parents[1] / "ecosystem" / "programs"
COMMON = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture
def sparse_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys of every sparse call."""
    seen: list[int] = []

    def counted(query, key, *rest, **named):
        seen.append(key.shape[2])
        return hybrid_attention(query, key, *rest, **named)

    monkeypatch.setattr(attention_interface, "hybrid_attention", counted)
    return seen


def losses(trainer: Trainer) -> list[float]:
    return [float(x["loss"]) for x in trainer.state.log_history if "loss" in x]


def checkpointing_arguments() -> dict[str, Any]:
    """Its name in later releases of transformers 5, or in earlier ones."""
    names = {field.name for field in fields(TrainingArguments)}
    later = "activation_checkpointing" in names
    name = "activation_checkpointing" if later else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_learns_saves_and_reloads(
    checkpointing: bool, tmp_path: Path, sparse_calls: list[int]
) -> None:
    rows = [{"input_ids": x, "labels": x} for x in token_ids(600, rows=2)]
    trainer = Trainer(
        model=sparse_llama(),
        args=TrainingArguments(
            str(tmp_path),
            max_steps=6,
            learning_rate=1e-2,
            **(checkpointing_arguments() if checkpointing else {}),
            **COMMON,
        ),
        train_dataset=rows,
    )
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0] - 0.1
    # Two layers, twice where the forward pass is computed again.
    assert len(sparse_calls) == 6 * 2 * (2 if checkpointing else 1)
    trainer.save_model()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="reformer").eval()
    ids = token_ids(200)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, trainer.model.eval()(ids).logits)


def test_seq2seq_trainer_trains_and_generates(tmp_path: Path, sparse_calls: list[int]) -> None:
    torch.manual_seed(0)
    model = tiny_bart()
    model.set_attn_implementation("reformer")
    reformer_hf.configure_attention(model, local_window=WINDOW)
    rows = [{"input_ids": x, "labels": x[:20]} for x in token_ids(300, rows=2)]
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            str(tmp_path),
            max_steps=6,
            learning_rate=1e-2,
            predict_with_generate=True,
            generation_max_length=8,
            **COMMON,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0] - 0.1
    # The encoder's two layers; summaries are shorter than the local window.
    assert set(sparse_calls) == {300}
    assert trainer.predict(rows).predictions.shape[0] == 2
    trainer.save_model()
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert stock.config._attn_implementation == "sdpa"


def test_lora_trains_its_own_weights_alone(sparse_calls: list[int]) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(sparse_llama(), config)
    ids = training_rows()
    model(input_ids=ids, labels=ids).loss.backward()
    assert sparse_calls == [120, 120]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name)
    assert reformer_hf.configure_attention(model, num_hashes=2).num_hashes == 2


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    launch_two(str(PROGRAMS / "pretrained_data_parallel.py"), tmp_path)
    model, rows = sparse_llama().train(), training_rows()
    model(input_ids=rows, labels=rows).loss.backward()
    for rank in range(ROWS):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
