"""What a function remembers is found by its second call, in the same order."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.recall import Recall, recalling, remember


def draw(*counts: int) -> list[Tensor]:
    """Results of several operations that give something else every time."""
    return [x for n in counts for x in remember(lambda n=n: tuple(torch.rand(2) for _ in range(n)))]


def test_results_come_back_in_order_and_as_often_as_they_are_asked_for() -> None:
    recall = Recall()
    with recall.record() as noted:
        first = draw(2, 0, 1)
    assert len(noted) == 3
    for _ in range(2):
        with recall.replay(noted):
            assert all(a is b for a, b in zip(draw(2, 0, 1), first, strict=True))


def test_the_recall_itself_holds_nothing() -> None:
    recall = Recall()
    with recall.record() as noted:
        draw(1)
    alive = weakref.ref(noted[0])
    with recall.replay(noted):
        draw(1)
    del noted
    assert alive() is None


def test_elsewhere_nothing_is_noted_or_found() -> None:
    recall = Recall()
    with recall.record() as noted:
        assert not recalling()
    draw(1)
    assert noted == []
    with recall.replay([]):
        assert recalling()
    assert not recalling()


def test_an_error_within_ends_it() -> None:
    recall = Recall()
    with pytest.raises(ZeroDivisionError), recall.replay([]):
        raise ZeroDivisionError
    assert not recalling()


def test_recalls_may_be_nested() -> None:
    outer, inner = Recall(), Recall()
    with outer.record() as noted:
        with inner.record() as within:
            draw(1)
        draw(1)
    assert len(noted) == len(within) == 1


def test_whole_numbers_are_noted_in_half_the_memory() -> None:
    results = (torch.tensor([0, -5, 2**31 - 1]), torch.rand(2), torch.tensor([True]))
    recall = Recall()
    with recall.record() as noted:
        assert remember(lambda: results, narrow=True) is results
    assert [x.dtype for x in noted] == [torch.int32, torch.float32, torch.bool]
    with recall.replay(noted):
        found = remember(lambda: (), narrow=True)
    for x, expected in zip(found, results, strict=True):
        assert x.dtype == expected.dtype
        assert torch.equal(x, expected)
