"""A sub-layer fails on one of two processes that share a sequence, while the other needs its part.

Usage: torchrun --nproc_per_node 2 failing_rank.py forward|backward
"""

from __future__ import annotations

import sys
from typing import Any

from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from reformer_hf.parallel import split_batch, split_sequence
from tests.ecosystem.sequence_recipes import CASES, batch_of, build


def main(way: str) -> None:
    distributed.init_process_group("gloo")
    case = CASES["causal_lm"]
    _, model = build(case)
    split_sequence(model, init_device_mesh("cpu", (2,)))
    inner: Any = model.base_model.stack.layers[2].feed_forward.inner
    compute, calls = inner.forward, []

    def fail(x: Any) -> Any:
        calls.append(way)
        if distributed.get_rank() == 1 and len(calls) == (1 if way == "forward" else 2):
            raise MemoryError("no room on this rank")
        return compute(x)

    inner.forward = fail
    model(**split_batch(model, batch_of(case))).loss.backward()
    raise SystemExit("the failure went unnoticed")


if __name__ == "__main__":
    main(sys.argv[1])
