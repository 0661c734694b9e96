"""Processes that share every sequence: losses, scores, gradients and refusals.

Usage: torchrun --nproc_per_node P sequence_parallel.py FOLDER
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from reformer_hf.parallel import gather_sequence, split_batch, split_sequence
from reformer_hf.parallel.trainer import SequenceParallelTrainer
from tests.ecosystem.sequence_recipes import (
    CASES,
    DROPPED,
    REFUSED,
    TOGETHER,
    TRAINED,
    Case,
    batch_of,
    build,
    collate,
    training_arguments,
    training_data,
)
from tests.models.builders import gradients


def run_case(mesh: DeviceMesh, case: Case) -> dict[str, Any]:
    """One forward and backward pass, in which ranks start from different random states."""
    head, model = build(case)
    parallel = DistributedDataParallel(split_sequence(model, mesh, split_target=case.split_target))
    torch.manual_seed(7 + 100 * mesh.get_rank())
    output = parallel(**split_batch(parallel, batch_of(case)))
    output.loss.backward()
    found = {"loss": output.loss.detach(), "gradients": gradients(model)}
    unsaid = output.get("logits") is None and head.task != "span"
    scores = None if unsaid else head.scores(output).detach()
    split = head.task in ("next_token", "token", "token_class") or case.split_target
    found["scores"] = gather_sequence(model, scores) if split and scores is not None else scores
    return found


def run_accumulated(mesh: DeviceMesh, name: str) -> dict[str, Any]:
    """Rows one by one, those of this data-parallel group; the last of them is synchronized."""
    case = CASES[name]
    head, model = build(case)
    batch = batch_of(case, rows=4)
    items = head.num_items(batch)
    parallel = DistributedDataParallel(split_sequence(model, mesh))
    mine = range(mesh.get_local_rank("dp"), 4, mesh["dp"].size())
    for row in mine:
        part = split_batch(parallel, {key: value[row : row + 1] for key, value in batch.items()})
        parallel.require_backward_grad_sync = row == mine[-1]
        loss = parallel(**part, num_items_in_batch=items).loss
        (loss * mesh["dp"].size()).backward()
    return {"gradients": gradients(model)}


def run_sharded(mesh: DeviceMesh, name: str) -> dict[str, Any]:
    """Every weight in parts on all processes (FSDP2), every sequence in parts on some."""
    case = CASES[name]
    _, model = build(case)
    split_sequence(model, mesh)
    whole = mesh._flatten("all") if mesh.ndim > 1 else mesh
    kept = model._no_split_modules
    for module in [m for m in model.modules() if type(m).__name__ in kept]:
        fully_shard(module, mesh=whole)
    fully_shard(model, mesh=whole)
    loss = model(**split_batch(model, batch_of(case))).loss
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        found[name] = parameter.grad.full_tensor()
    return {"loss": loss.detach(), "gradients": found}


def run_refused(mesh: DeviceMesh) -> dict[str, str]:
    """What every rank says where what the ranks were given cannot work."""
    case = CASES["causal_lm"]
    _, model = build(case)
    split_sequence(model, mesh)
    first = mesh.get_rank() == 0
    whole = batch_of(case)
    part = split_batch(model, whole)
    bad_token = part["input_ids"].clone()
    bad_token[0, 3] = 99 if first else 5
    bad_label = part["labels"].clone()
    bad_label[0, 3] = 99 if first else 5
    rows = {key: value[: 1 if first else 2] for key, value in part.items()}
    calls: dict[str, Callable[[], Any]] = {
        "other rows": lambda: model(**rows),
        "other parts": lambda: model(whole["input_ids"][:, : 40 if first else 30]),
        "other rounds": lambda: model(**part, num_hashes=2 if first else 3),
        "other batches": lambda: split_batch(model, batch_of(case, rows=1 if first else 2)),
        "a short batch": lambda: split_batch(model, {"input_ids": whole["input_ids"][:, :1]}),
        "cache": lambda: model(part["input_ids"], use_cache=True),
        "weights": lambda: model(part["input_ids"], output_attentions=True),
        "generate": lambda: model.generate(part["input_ids"], max_new_tokens=2, do_sample=False),
        "one bad token": lambda: model(bad_token),
        "one bad label": lambda: model(part["input_ids"], labels=bad_label),
    }
    assert calls.keys() == REFUSED.keys()
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("reformer_hf.models.sequence_parts").addHandler(handler)
    model(**part)
    found["told of parts"] = str(told)
    model(**{key: value[:, :38] for key, value in whole.items()})
    found["told of whole rows"] = str(told)
    split_sequence(model, None)
    with torch.no_grad():
        found["whole again"] = str(float(model(**whole).loss))
    return found


def run_trainer(folder: Path, ranks: int) -> dict[str, Any]:
    """A run of a `Trainer` whose processes share documents, some ranks to each."""
    _, model = build(CASES[TRAINED])
    arguments = training_arguments(folder, accumulated=2)
    trainer = SequenceParallelTrainer(
        *(model, arguments),
        train_dataset=training_data(),
        eval_dataset=training_data(),
        data_collator=collate,
        sequence_parallel_size=ranks,
    )
    trainer.train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.accelerator.free_memory()
    return {"weights": weights, "losses": losses, "evaluated": evaluated}


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    world = distributed.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    results: dict[str, Any] = {name: run_case(mesh, case) for name, case in CASES.items()}
    results["dropped"] = {name: run_case(mesh, case) for name, case in DROPPED.items()}
    both = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "sp"))
    for name in TOGETHER:
        results[f"accumulated-{name}"] = run_accumulated(both, name)
        results[f"sharded-{name}"] = run_sharded(both, name)
    results["refused"] = run_refused(mesh)
    results["trainer"] = run_trainer(folder / f"trained{mesh.get_rank()}", ranks=2)
    torch.save(results, folder / f"rank{mesh.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
