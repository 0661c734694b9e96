"""Two processes, each with a row of the batch, train a pretrained model in sparse attention (DDP).

Usage: accelerate launch --multi_gpu --num_processes 2 pretrained_data_parallel.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from tests.pretrained.recipes import ROWS, sparse_llama, training_rows


def gradients_of_my_row(accelerator: Accelerator) -> dict[str, Tensor | None]:
    """Gradients that DDP leaves behind after one row per process."""
    model = accelerator.prepare(sparse_llama().train())
    row = training_rows()[accelerator.process_index : accelerator.process_index + 1]
    accelerator.backward(model(input_ids=row, labels=row).loss)
    return {n: p.grad for n, p in accelerator.unwrap_model(model).named_parameters()}


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == ROWS
    torch.save(gradients_of_my_row(accelerator), folder / f"rank{accelerator.process_index}.pt")
    # DDP's reducer must not be the last to hold the process group: its destructor then waits,
    # with the interpreter's lock, for a gloo thread that needs this lock to let go of its work.
    accelerator.free_memory()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
