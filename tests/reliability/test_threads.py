"""Two models train in two threads at once, and each gets what it gets alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reformer_hf.layers import kept_activations
from tests.layers.note_calls import note_calls
from tests.models.builders import HEAD_OF, Head

STEPS = 6


def train(head: Head, seed: int, meet: Callable[[], object]) -> list[Tensor]:
    """Losses and final weights. Rotations are fixed: threads share torch's random state."""
    model = head.model_class(
        head.config(
            hash_seed=seed,
            hidden_dropout_prob=0.0,
            attn_layers=["lsh", "local", "full", "lsh"],
            chunk_size_feed_forward=16,
        )
    ).train()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(STEPS):
        meet()
        loss = model(**head.batch(2, 40 + 7 * step, seed=seed + step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [*losses, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.parametrize(
    "names",
    [
        ("causal_lm", "causal_lm"),
        ("causal_lm", "seq2seq_lm"),
        ("masked_lm", "token_classification"),
    ],
    ids="-".join,
)
def test_two_threads_get_the_results_of_one(names: tuple[str, str]) -> None:
    heads = [HEAD_OF[name] for name in names]
    alone = [train(head, seed, lambda: None) for seed, head in enumerate(heads)]
    together: dict[int, list[Tensor]] = {}
    barrier = threading.Barrier(len(heads), timeout=60)

    def run(seed: int, head: Head) -> None:
        together[seed] = train(head, seed, barrier.wait)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(heads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        assert len(expected) == len(together[seed])
        assert all(map(torch.equal, together[seed], expected))


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept beyond what gradients leave room for."""
    monkeypatch.setattr(kept_activations, "_STREAMS", 0)


@pytest.mark.usefixtures("no_room")
def test_a_backward_pass_that_would_compute_something_else_is_refused() -> None:
    # Random numbers that somebody else draws in between, as threads with dropout do.
    head = HEAD_OF["causal_lm"]
    model = head.build(hidden_dropout_prob=0.5)
    loss = model(**head.batch(2, 40)).loss
    first = model.reformer.stack.layers[0].attention
    note_calls(first, lambda: torch.rand(3))
    with pytest.raises(RuntimeError, match=r"step 0 .* did not draw the random numbers"):
        loss.backward()


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("keeps", [True, False])
def test_weights_that_change_before_the_backward_pass_are_noticed(keeps: bool) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build()
    for parameter in model.parameters():
        # Streams are kept only where gradients are still to come.
        parameter.grad = None if keeps else torch.zeros_like(parameter)
    loss = model(**head.batch(2, 40)).loss
    with torch.no_grad():
        model.reformer.stack.layers[0].feed_forward.inner.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"the weight `inner\.weight` .* was changed in place"):
        loss.backward()
