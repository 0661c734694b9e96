"""Models with real weights, where `scripts/fetch_test_models.sh` has put them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import reformer_hf
from reformer_hf.pretrained.language_model_loss import token_losses

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "test_models"


def folder(name: str) -> Path:
    if not (MODELS / name).is_dir():
        pytest.skip("needs `bash scripts/fetch_test_models.sh`")
    return MODELS / name


def text_ids(path: Path, length: int) -> torch.Tensor:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return AutoTokenizer.from_pretrained(path)(text, return_tensors="pt").input_ids[:, :length]


def test_rounds_bring_a_language_model_closer_to_full_attention() -> None:
    path = folder("smollm2")
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="reformer").eval()
    ids = text_ids(path, 1024)
    reformer_hf.configure_attention(model, local_window=64, bucket_window=32)
    losses = {}
    for rounds in (0, 4, 16):
        reformer_hf.configure_attention(model, num_hashes=rounds)
        losses[rounds] = float(token_losses(model, ids).mean())
    model.set_attn_implementation("sdpa")
    full = float(token_losses(model, ids).mean())
    assert 1.0 < full < 5.0
    assert losses[0] > losses[4] > losses[16]
    # Most of what a short local window loses comes back.
    assert losses[16] - full < 0.5 * (losses[0] - full)


def test_a_language_model_answers_in_its_chat_template() -> None:
    path = folder("smollm2")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="reformer").eval()
    question = [{"role": "user", "content": "What is the capital of France? One word."}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, inputs["input_ids"].shape[1] :])


def test_an_encoder_finds_what_is_alike_in_longer_texts_than_it_was_made_for() -> None:
    path = folder("minilm")
    model = AutoModel.from_pretrained(path, attn_implementation="reformer").eval()
    reformer_hf.configure_attention(model, local_window=128)
    reformer_hf.extend_positions(model, 2048)
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = [
        "The cat sat on the warm mat and purred while it rained. " * 60,
        "A kitten slept on a rug near the fire, and outside the rain fell. " * 60,
        "The central bank raised interest rates to slow inflation this year. " * 60,
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch.input_ids.shape[1] > 600
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    weights = batch.attention_mask.unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    alike, other = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert alike > other + 0.3
