"""Two processes, every one with half of the batch: the gradients that `accelerate` leaves behind.

Usage: accelerate launch --multi_gpu --num_processes 2 data_parallel.py FOLDER
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from tests.ecosystem.recipes import ACCUMULATED, DATA_PARALLEL_HEADS, ROWS, model_and_batch
from tests.layers.note_calls import note_calls
from tests.models.builders import gradients


def accumulated_gradients(accelerator: Accelerator, name: str) -> dict[str, Tensor]:
    """Gradients of one optimizer step: this process's rows, one by one, the last of them synced."""
    head, model, batch = model_and_batch(name)
    items = head.num_items(batch)
    model = accelerator.prepare(model)
    mine = range(accelerator.process_index, ROWS, accelerator.num_processes)
    for row in mine:
        part = {key: value[row : row + 1] for key, value in batch.items()}
        last = row == mine[-1]
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = model(**part, num_items_in_batch=items).loss
            # DDP averages over processes and accelerate over accumulated batches; the loss is
            # already divided by the items of all of them.
            accelerator.backward(loss * accelerator.num_processes * ACCUMULATED)
    return gradients(accelerator.unwrap_model(model))


def order_of_events(accelerator: Accelerator) -> list[tuple[str, int]]:
    """Recomputed layers and communicated buckets of a backward pass, in the order they came."""
    # Wide enough for several buckets: DDP starts with one of 1 MiB whatever is asked for.
    wide = {"hidden_size": 128, "attention_head_size": 64, "feed_forward_size": 1024}
    head, model, batch = model_and_batch("causal_lm", attn_layers=["lsh"] * 6, **wide)
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=1)
    events: list[tuple[str, int]] = []

    # DDP looks at the annotation itself, so this file does not postpone annotations.
    def communicate(_: Any, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        events.append(("bucket", bucket.index()))
        future = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    ddp.register_comm_hook(None, communicate)
    for index, layer in enumerate(model.reformer.stack.layers):
        note_calls(layer.attention, lambda index=index: events.append(("layer", index)))
    for _ in range(2):  # after the first pass DDP arranges buckets as gradients became ready
        loss = ddp(**batch).loss
        events.clear()
        loss.backward()
    return events


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    assert accelerator.num_processes == 2
    found = {name: accumulated_gradients(accelerator, name) for name in DATA_PARALLEL_HEADS}
    events = order_of_events(accelerator)
    torch.save(
        {"gradients": found, "events": events}, folder / f"rank{accelerator.process_index}.pt"
    )
    # DDP's reducers must not be the last to hold the process group: its destructor then waits,
    # with the interpreter's lock, for a gloo thread that needs this lock to let go of its work.
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
