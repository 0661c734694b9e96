"""Two processes that share every weight between them (FSDP2): gradients, and what was gathered.

Usage: accelerate launch --multi_gpu --num_processes 2 fully_sharded.py FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.ecosystem.recipes import (
    REFUSED,
    ROWS,
    SHARDED_STEPS,
    WRAPPINGS,
    model_and_batch,
    sgd,
)

Shard = Callable[..., Any]


def sub_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers and accelerate shard; FSDP2 changes the names of classes."""
    kept_whole = model._no_split_modules
    return [module for module in model.modules() if type(module).__name__ in kept_whole]


def wrap(model: nn.Module, wrapping: str, shard: Shard) -> None:
    """Shard a model module by module, as `WRAPPINGS` describes."""
    if wrapping == "accelerate":
        shard_as_accelerate_does(model)
        return
    if wrapping == "sub-layers":
        for module in sub_layers(model):
            shard(module)
    if wrapping == "layers":
        for layer in model.base_model.stack.layers:
            shard(layer)
    if wrapping == "projections":
        for layer in model.base_model.stack.layers:
            shard(layer.feed_forward.inner)
    shard(model)


def shard_as_accelerate_does(model: nn.Module) -> None:
    """What `Accelerator.prepare` calls on accelerators; it takes no CPU for FSDP2."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        is_main_process=True,
        device=torch.device("cpu"),
    )
    fsdp2_prepare_model(accelerator, model)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients put together from their shards."""
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        assert parameter.grad is not None, name
        found[name] = parameter.grad.full_tensor()
    return found


def train(mesh: DeviceMesh, name: str, wrapping: str, **options: Any) -> dict[str, Any]:
    """Some steps, each of two accumulated batches; gradients and gathered sub-layers.

    With `joint` both batches go forward before one backward pass of the sum of their losses.
    """
    joint = options.pop("joint", False)
    policy = options.pop("policy", MixedPrecisionPolicy())
    head, model, batch = model_and_batch(name, **options)
    items = head.num_items(batch)
    parts = sub_layers(model)
    wrap(model, wrapping, lambda *a, **k: fully_shard(*a, mesh=mesh, mp_policy=policy, **k))
    gathered: list[int] = []

    def count(*_: Any) -> None:
        gathered.append(sum(not isinstance(next(p.parameters()), DTensor) for p in parts))

    for part in parts:
        part.register_forward_pre_hook(count)
    optimizer = sgd(model)
    found = []
    mine = range(mesh.get_rank(), ROWS, mesh.size())
    for _ in range(SHARDED_STEPS):
        optimizer.zero_grad()
        losses = []
        for row in mine:
            inputs = {key: value[row : row + 1] for key, value in batch.items()}
            losses.append(model(**inputs, num_items_in_batch=items).loss * mesh.size())
            if not joint:
                model.set_requires_gradient_sync(row == mine[-1])
                losses.pop().backward()
        if joint:
            sum(losses).backward()
        found.append(whole_gradients(model))
        optimizer.step()
    return {"gradients": found, "gathered": max(gathered), "sub_layers": len(parts)}


def refusal(mesh: DeviceMesh, wrapping: str) -> str:
    """What the model says when other modules were sharded than those that it calls."""
    _, model, batch = model_and_batch("causal_lm")
    wrap(model, wrapping, lambda module: fully_shard(module, mesh=mesh))
    try:
        model(**batch)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    results: dict[str, Any] = {
        "refusals": {wrapping: refusal(mesh, wrapping) for wrapping in REFUSED},
        "projections-plain": train(mesh, "causal_lm", "projections", reversible=False),
    }
    for wrapping, names in WRAPPINGS.items():
        for name in names:
            results[f"{wrapping}-{name}"] = train(mesh, name, wrapping)
    results["joint-causal_lm"] = train(mesh, "causal_lm", "sub-layers", joint=True)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for reversible in (True, False):
        results[f"bf16-{reversible}"] = train(
            mesh,
            "causal_lm",
            "sub-layers",
            policy=half,
            reversible=reversible,
            attn_layers=["local"] * 3,  # rounded queries may fall into other buckets
        )
    torch.save(results, folder / f"rank{mesh.get_rank()}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
