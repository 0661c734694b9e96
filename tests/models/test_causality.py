"""Strict causality: nothing that comes later changes an earlier prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import HEAD_OF, LAYER_MIXES, NO_DROPOUT, VOCAB, random_ids

TOLERANCE = 1e-5
LENGTH = 700
# The last token that is not edited: at borders of chunks, between them, near both ends.
KEPT = (0, 7, 8, 150, 349, 640, 698)

MIXES = pytest.mark.parametrize("mix", LAYER_MIXES, ids=["+".join(m) for m in LAYER_MIXES])
ROUNDS = pytest.mark.parametrize("num_hashes", [1, 4], ids=["1-round", "4-rounds"])


def edited(ids: Tensor, kept: int) -> Tensor:
    """All tokens after position `kept` replaced by other ones."""
    ids = ids.clone()
    ids[:, kept + 1 :] = 2 + (ids[:, kept + 1 :] - 2 + 17) % (VOCAB - 2)
    return ids


def assert_causal(model: ReformerPreTrainedModel, ids: Tensor, name: str, **others: Any) -> None:
    """Edits change what stands behind them, and only that."""
    with torch.no_grad():
        before = model(**{name: ids}, **others).logits
        for kept in KEPT:
            after = model(**{name: edited(ids, kept)}, **others).logits
            assert (after - before)[:, : kept + 1].abs().max() <= TOLERANCE, kept
            assert (after - before)[:, kept + 1 :].abs().amax(-1).min() > 1e-3, kept


@MIXES
@ROUNDS
def test_editing_later_tokens_leaves_earlier_logits_alone(
    mix: tuple[str, ...], num_hashes: int
) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(attn_layers=list(mix), num_hashes=num_hashes).eval()
    assert_causal(model, random_ids(1, LENGTH, seed=3), "input_ids")


@pytest.mark.parametrize(
    "options",
    [
        {"hash_family": "euclidean"},
        {"hash_family": "random"},
        {"num_buckets": [4, 8]},
        {"num_buckets": 256},
        {"count_duplicates": False, "num_hashes": 4},
        {"lsh_num_chunks_before": 2, "local_num_chunks_before": 3},
        {"lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
        {"attention_backend": "reference"},
        {"exact_reversible": False},
        {"stream_merge": "concat", "tie_word_embeddings": False},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
def test_no_option_breaks_causality(options: dict[str, Any]) -> None:
    model = HEAD_OF["causal_lm"].build(**options).eval()
    assert_causal(model, random_ids(1, LENGTH, seed=3), "input_ids")


@MIXES
def test_causality_holds_in_training_mode(mix: tuple[str, ...]) -> None:
    model = HEAD_OF["causal_lm"].build(attn_layers=list(mix), hash_seed=5, **NO_DROPOUT).train()
    assert_causal(model, random_ids(1, LENGTH, seed=3), "input_ids")


@MIXES
@ROUNDS
def test_decoder_is_causal(mix: tuple[str, ...], num_hashes: int) -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build(
        decoder_attn_layers=list(mix), num_hashes=num_hashes, max_target_positions=LENGTH
    ).eval()
    source = random_ids(1, 50, seed=4)
    assert_causal(model, random_ids(1, LENGTH, seed=3), "decoder_input_ids", input_ids=source)


def test_bare_model_is_causal_as_a_decoder_and_bidirectional_otherwise() -> None:
    head = HEAD_OF["model"]
    ids = random_ids(1, 100, seed=3)
    for is_decoder in (True, False):
        model = head.build(is_decoder=is_decoder).eval()
        with torch.no_grad():
            change = (
                (model(edited(ids, 60)).last_hidden_state - model(ids).last_hidden_state)[0, :61]
                .abs()
                .amax(-1)
            )
        if is_decoder:
            assert change.max() <= TOLERANCE
        else:
            assert (change[40:] > 1e-3).all()


def test_causality_follows_the_head_whatever_the_flag_says() -> None:
    causal = HEAD_OF["causal_lm"].build(is_decoder=False).eval()
    assert causal.config.is_decoder is True
    assert_causal(causal, random_ids(1, LENGTH, seed=3), "input_ids")
    masked = HEAD_OF["masked_lm"].build(is_decoder=True).eval()
    assert masked.config.is_decoder is False
    ids = random_ids(1, 100, seed=3)
    with torch.no_grad():
        change = (masked(edited(ids, 60)).logits - masked(ids).logits)[0, :61].abs().amax(-1)
    assert (change[40:] > 1e-3).all()
