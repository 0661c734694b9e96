"""LSH attention finds content far outside the local window; local attention cannot.

The first half of a sequence holds random vectors, each with a class; the second half repeats the
vectors in another order, without the classes, which are to be recalled. Vectors are new in every
batch, so that nothing but comparing contents helps.
"""

from __future__ import annotations

import pytest
import torch

from reformer_hf import ReformerConfig, ReformerForTokenClassification

CLASSES, PAIRS, WIDTH = 16, 128, 64
CHANCE = 1.0 / CLASSES


def _batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = torch.randn(rows, PAIRS, WIDTH - CLASSES)
    classes = torch.randint(0, CLASSES, (rows, PAIRS))
    again = torch.rand(rows, PAIRS).argsort(dim=1)
    one_hot = 4.0 * torch.nn.functional.one_hot(classes, CLASSES).float()
    known = torch.cat((keys, one_hot), dim=-1)
    repeated = keys.gather(1, again.unsqueeze(-1).expand_as(keys))
    asked = torch.cat((repeated, torch.zeros(rows, PAIRS, CLASSES)), dim=-1)
    labels = torch.cat((torch.full((rows, PAIRS), -100), classes.gather(1, again)), dim=1)
    return torch.cat((known, asked), dim=1) * 0.5, labels


def _accuracy_after_training(layers: list[str], steps: int) -> float:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=2,
        hidden_size=WIDTH,
        num_attention_heads=2,
        attention_head_size=32,
        feed_forward_size=128,
        attn_layers=layers,
        max_position_embeddings=2 * PAIRS,
        hidden_dropout_prob=0.0,
        lsh_attn_chunk_length=16,
        local_attn_chunk_length=8,
        num_hashes=4,
        num_labels=CLASSES,
    )
    model = ReformerForTokenClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        vectors, labels = _batch(16)
        optimizer.zero_grad()
        model(inputs_embeds=vectors, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    vectors, labels = _batch(32)
    with torch.no_grad():
        predicted = model(inputs_embeds=vectors).logits.argmax(dim=-1)
    asked = labels != -100
    return float((predicted == labels)[asked].float().mean())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lsh_attention_recalls_what_local_attention_cannot_reach() -> None:
    with_lsh = _accuracy_after_training(["local", "lsh"], steps=100)
    local_only = _accuracy_after_training(["local", "local"], steps=100)
    print(f"associative recall: local+lsh {with_lsh:.3f}, local only {local_only:.3f}")
    assert with_lsh > 0.95
    assert local_only < 2 * CHANCE
