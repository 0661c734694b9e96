"""What operations keep in one call of a function is found by its second call, in order."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.kept_results import KeptResults, keep_results, replaying


def draw(*counts: int) -> list[Tensor]:
    """Results of several operations that give something else every time."""
    return [
        x for n in counts for x in keep_results(lambda n=n: tuple(torch.rand(2) for _ in range(n)))
    ]


def test_results_come_back_in_order_and_as_often_as_they_are_asked_for() -> None:
    results = KeptResults()
    with results.record() as kept:
        first = draw(2, 0, 1)
    assert len(kept) == 3
    for _ in range(2):
        with results.replay(kept):
            assert all(a is b for a, b in zip(draw(2, 0, 1), first, strict=True))


def test_the_kept_results_are_not_held_by_the_recorder() -> None:
    results = KeptResults()
    with results.record() as kept:
        draw(1)
    alive = weakref.ref(kept[0])
    with results.replay(kept):
        draw(1)
    del kept
    assert alive() is None


def test_elsewhere_nothing_is_kept_or_handed_out() -> None:
    results = KeptResults()
    with results.record() as kept:
        assert not replaying()
    draw(1)
    assert kept == []
    with results.replay([]):
        assert replaying()
    assert not replaying()


def test_an_error_within_ends_it() -> None:
    results = KeptResults()
    with pytest.raises(ZeroDivisionError), results.replay([]):
        raise ZeroDivisionError
    assert not replaying()


def test_recordings_may_be_nested() -> None:
    outer, inner = KeptResults(), KeptResults()
    with outer.record() as kept:
        with inner.record() as within:
            draw(1)
        draw(1)
    assert len(kept) == len(within) == 1


def test_whole_numbers_are_kept_in_half_the_memory() -> None:
    numbers = (torch.tensor([0, -5, 2**31 - 1]), torch.rand(2), torch.tensor([True]))
    results = KeptResults()
    with results.record() as kept:
        assert keep_results(lambda: numbers, narrow=True) is numbers
    assert [x.dtype for x in kept] == [torch.int32, torch.float32, torch.bool]
    with results.replay(kept):
        found = keep_results(lambda: (), narrow=True)
    for x, expected in zip(found, numbers, strict=True):
        assert x.dtype == expected.dtype
        assert torch.equal(x, expected)
