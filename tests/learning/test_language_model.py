"""A small byte-level language model on novels: LSH attention learns as full attention does."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from reformer_hf import ReformerConfig, ReformerForCausalLM

BOOKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "books_lm"
LENGTH, BATCH, STEPS, EVALUATED = 1024, 4, 300, 40
LEARNING_RATE = 2e-3


def _bytes(split: str) -> torch.Tensor:
    with gzip.open(BOOKS / f"{split}.txt.gz") as file:
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).to(torch.int64)


def _validation_loss(attn_layers: list[str], attention_pattern: str = "window") -> float:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=256,
        hidden_size=128,
        num_attention_heads=4,
        attention_head_size=32,
        feed_forward_size=512,
        attn_layers=attn_layers,
        attention_pattern=attention_pattern,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
    )
    model = ReformerForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    text, generator = _bytes("train"), torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        starts = torch.randint(0, len(text) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([text[start : start + LENGTH] for start in starts])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    held_out = _bytes("validation")[: 8 * EVALUATED * LENGTH].view(EVALUATED, -1)[:, :LENGTH]
    with torch.no_grad():
        losses = [model(row[None], labels=row[None]).loss.item() for row in held_out]
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not BOOKS.is_dir(), reason="the novels are not on this machine")
def test_lsh_attention_is_within_two_percent_of_full_attention() -> None:
    full = _validation_loss(["full"] * 4)
    others = {
        "lsh, window": _validation_loss(["lsh"] * 4),
        "lsh, chunk": _validation_loss(["lsh"] * 4, "chunk"),
        "local and lsh, window": _validation_loss(["local", "lsh"] * 2),
    }
    print(f"nats per byte: full {full:.4f}", {k: round(v, 4) for k, v in others.items()})
    for name, loss in others.items():
        assert loss < 1.02 * full, name
