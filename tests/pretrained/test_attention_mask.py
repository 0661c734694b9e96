"""Which calls are sparse: the masks that transformers asks for, told apart."""

from __future__ import annotations

import pytest
import torch
from transformers import masking_utils

from reformer_hf.pretrained.attention_mask import MaskKind, kind_of, reformer_mask


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 7, 4096])
def test_a_kind_survives_its_code(causal: bool, window: int | None) -> None:
    kind = MaskKind(causal, window)
    assert kind.code > 0
    assert MaskKind.from_code(kind.code) == kind


def test_numbers_that_stand_for_nothing_are_no_kind() -> None:
    assert [MaskKind.from_code(code) for code in (0, 3, 15)] == [None, None, None]


def test_masks_that_can_be_sparse_are_recognised() -> None:
    causal, both = masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function
    assert kind_of(causal) == MaskKind(True)
    assert kind_of(both) == MaskKind(False)
    sliding = masking_utils.sliding_window_causal_mask_function(5)
    assert kind_of(sliding) == MaskKind(True, 5)
    # transformers counts the window's edge in there.
    assert kind_of(masking_utils.sliding_window_bidirectional_mask_function(5)) == MaskKind(
        False, 6
    )


def test_every_other_mask_is_not() -> None:
    causal = masking_utils.causal_mask_function
    blocks = masking_utils.blockwise_overlay(torch.zeros(1, 4, dtype=torch.long))
    for function in (
        masking_utils.or_masks(causal, blocks),
        masking_utils.and_masks(causal, masking_utils.sliding_window_overlay(3), blocks),
        masking_utils.and_masks(masking_utils.sliding_window_overlay(3), blocks),
        masking_utils.chunked_causal_mask_function(4, torch.zeros(1)),
        lambda batch, head, query, key: key <= query,
    ):
        assert kind_of(function) is None


def ask(**changes) -> torch.Tensor | None:
    asked = {"batch_size": 2, "q_length": 300, "kv_length": 300, "device": torch.device("cpu")}
    return reformer_mask(**{**asked, **changes})


def test_a_long_plain_call_gets_a_coded_mask_and_nothing_square() -> None:
    mask = ask()
    assert mask is not None
    assert mask.shape == (2, 300)
    assert mask.dtype == torch.int32
    assert (mask == MaskKind(True).code).all()
    padded = torch.ones(2, 300, dtype=torch.bool)
    padded[0, :9] = False
    mask = ask(attention_mask=padded)
    assert mask is not None
    assert torch.equal(mask != 0, padded)


@pytest.mark.parametrize(
    "changes",
    [
        {"q_length": 200, "kv_length": 200},  # short
        {"q_length": 1, "q_offset": 299},  # a decoding step
        {"q_length": 300, "kv_length": 500},  # a static cache, not yet full
        {"kv_offset": 3, "q_offset": 3},  # a cache that has forgotten its beginning
        {"mask_function": masking_utils.or_masks(masking_utils.causal_mask_function)},
    ],
    ids=lambda c: " ".join(c),
)
def test_any_other_call_gets_the_mask_of_sdpa(changes: dict) -> None:
    mask = ask(**changes)
    asked = {"batch_size": 2, "q_length": 300, "kv_length": 300, "device": torch.device("cpu")}
    expected = masking_utils.sdpa_mask(**{**asked, **changes})
    if expected is None:
        assert mask is None
    else:
        assert torch.equal(mask, expected)


def test_a_sliding_window_with_holes_counts_slots_and_stays_dense() -> None:
    real = torch.ones(2, 300, dtype=torch.bool)
    sliding = masking_utils.sliding_window_causal_mask_function(20)
    real[0, :50] = False
    assert ask(mask_function=sliding, attention_mask=real).dim() == 2
    real[0, 100:120] = False
    assert ask(mask_function=sliding, attention_mask=real).dim() == 4
