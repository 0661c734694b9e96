"""Two processes, each with a row of the batch, train a pretrained model in sparse attention (DDP).

Usage: accelerate launch --multi_gpu --num_processes 2 pretrained_data_parallel.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from tests.pretrained.recipes import ROWS, sparse_llama, training_rows


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == ROWS
    model = accelerator.prepare(sparse_llama().train())
    row = training_rows()[accelerator.process_index : accelerator.process_index + 1]
    accelerator.backward(model(input_ids=row, labels=row).loss)
    found = {n: p.grad for n, p in accelerator.unwrap_model(model).named_parameters()}
    torch.save(found, folder / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
