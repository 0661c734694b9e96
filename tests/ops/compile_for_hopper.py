"""Compiles the kernels that calls would launch, for compute capability 9.0, without a GPU.

Run as a program, because the tests' own process may hold interpreted kernels: reads a list of
calls from standard input, as JSON, and writes for every compiled kernel the registers of a thread,
the bytes that it spills, and the shared memory of a program. What is compiled is what
a launch would compile: the launches of real calls are recorded instead of run, with all their
arguments. The numbers come from the machine code itself (``cuobjdump``, which Triton brings along),
so they are those of the very assembler and options that a launch uses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reformer_hf.ops import triton_hash, triton_sort
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hybrid_attention import HybridWindow
from reformer_hf.ops.hybrid_attention import triton_backward as hybrid_backward
from reformer_hf.ops.hybrid_attention import triton_forward as hybrid_forward
from reformer_hf.ops.hybrid_attention.call import HybridCall
from reformer_hf.ops.reversible import triton_residual
from reformer_hf.ops.sorting import sort_by_bucket
from reformer_hf.ops.windowed_attention import (
    WindowedAttentionCall,
    triton_backward,
    triton_forward,
)

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]
FLAGS = ("FIRST", "LAST", "LOCAL", "SINKS", "BLOCK")
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


class Recorder:
    """Stands in for a kernel: takes launches down instead of running them."""

    def __init__(self, kernel: Any, launches: list[Launch]):
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            self._launches.append((self._kernel, arguments, constants))

        return launch


def compile_launch(
    kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> dict[str, Any]:
    """Compile one launch, with the specialisation to its arguments that Triton makes."""
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **constants}
    varying = {kernel.arg_names[i] for i in kernel.do_not_specialize if isinstance(i, int)}
    varying |= {i for i in kernel.do_not_specialize if isinstance(i, str)}
    signature, fixed, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        special = name not in varying
        if value is None or name in constants or (type(value) is int and value == 1 and special):
            signature[name], fixed[(index,)] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value >= 1 << 31:
            signature[name] = "i64"
        else:
            signature[name] = "i32"
            if special and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    compiled = triton.compile(source, target=HOPPER, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return {
        "kernel": kernel.fn.__name__,
        "registers": int(found["REG"]),
        "spilled": int(found["STACK"]) + int(found["LOCAL"]),
        "shared": compiled.metadata.shared,
        "warps": options.get("num_warps", 4),
        "matrix_units": "wgmma" if "wgmma" in compiled.asm["ptx"] else "mma",
    }


def record_attention(variant: dict[str, Any]) -> list[Launch]:
    """The launches of one call, forward and backward."""
    variant = dict(variant)
    dtype = getattr(torch, variant.pop("dtype"))
    size, rounds, own_keys = (variant.pop(n) for n in ("size", "rounds", "own_keys"))
    window = AttentionWindow(chunk_length=64, **variant)
    x = torch.zeros((1, 192, 4, size), dtype=dtype).transpose(1, 2)
    order = sort_by_bucket(torch.zeros((1, 4, rounds, 192), dtype=torch.int64)) if rounds else None
    real = torch.ones((1, 192), dtype=torch.bool) if window.pattern == "chunk" else None
    call = WindowedAttentionCall(x, x if own_keys else None, x, order, real, window, 1.0)
    launches: list[Launch] = []
    modules = (triton_forward, "forward_kernel"), (triton_backward, "delta_kernel")
    modules += (triton_backward, "queries_kernel"), (triton_backward, "keys_kernel")
    kernels = [getattr(module, name) for module, name in modules]
    for (module, name), kernel in zip(modules, kernels, strict=True):
        setattr(module, name, Recorder(kernel, launches))
    try:
        out, lse, _ = triton_forward.forward(call)
        triton_backward.backward(call, out, out, lse)
    finally:
        for (module, name), kernel in zip(modules, kernels, strict=True):
            setattr(module, name, kernel)
    return launches


def record_hybrid(variant: dict[str, Any]) -> list[Launch]:
    """The launches of one call of hybrid attention: local window, two rounds, and the sinks."""
    x = torch.zeros((1, 192, 4, variant["size"]), dtype=getattr(torch, variant["dtype"]))
    key = x[:, :, :2].transpose(1, 2)
    window = HybridWindow(32, num_hashes=2, causal=variant["causal"], dropout=variant["dropout"])
    call = HybridCall(x.transpose(1, 2), key, key, None, window, 1.0)
    launches: list[Launch] = []
    places = (
        *((hybrid_forward, "forward_kernel"), (hybrid_backward, "queries_kernel")),
        (hybrid_backward, "keys_kernel"),
    )
    kernels = [getattr(module, name) for module, name in places]
    for (module, name), kernel in zip(places, kernels, strict=True):
        setattr(module, name, Recorder(kernel, launches))
    try:
        out, lse = hybrid_forward.forward(call)
        hybrid_backward.backward(call, out, out, lse)
    finally:
        for (module, name), kernel in zip(places, kernels, strict=True):
            setattr(module, name, kernel)
    # Rounds differ in no compile-time constant.
    chosen = {(k, n["LOCAL"], n.get("SINKS")): (k, a, n) for k, a, n in launches}
    return list(chosen.values())


def record_small_kernels(variant: dict[str, Any]) -> list[Launch]:
    """The launches of a hash and of the residual sums, there and back."""
    launches: list[Launch] = []
    dtype, size = getattr(torch, variant["dtype"]), variant["size"]
    kernels = triton_hash.angular_kernel, triton_residual.residual_kernel
    triton_hash.angular_kernel = Recorder(kernels[0], launches)
    triton_residual.residual_kernel = Recorder(kernels[1], launches)
    try:
        vectors = torch.zeros((1, 192, 4, size), dtype=dtype).transpose(1, 2)
        columns = sum(variant["factors"]) // 2
        rotations = torch.zeros((4, size, 2, columns))
        triton_hash.hash_angular(vectors, rotations, variant["factors"])
        stored, added = (torch.zeros((1, 192, 256), dtype=t) for t in (torch.int32, dtype))
        triton_residual.add(stored, added, stored, stored.float(), 0.5, 2.0, 2.0)
        triton_residual.subtract(stored, added, stored, 0.5, 2.0)
    finally:
        triton_hash.angular_kernel, triton_residual.residual_kernel = kernels
    return launches


def record_sort(variant: dict[str, Any]) -> list[Launch]:
    """The launches of a sort by bucket, two per pass."""
    launches: list[Launch] = []
    kernels = triton_sort.count_kernel, triton_sort.place_kernel
    triton_sort.count_kernel, triton_sort.place_kernel = (Recorder(k, launches) for k in kernels)
    try:
        buckets = torch.zeros((1, 2, 2, variant["length"]), dtype=torch.int64)
        triton_sort.sort_tokens(buckets, variant["num_buckets"])
    finally:
        triton_sort.count_kernel, triton_sort.place_kernel = kernels
    return launches


def recorder_of(variant: dict[str, Any]) -> Callable[[dict[str, Any]], list[Launch]]:
    """What takes down the launches of a call, told by its arguments."""
    if variant.get("operation") == "hybrid":
        return record_hybrid
    if "num_buckets" in variant:
        return record_sort
    return record_small_kernels if "factors" in variant else record_attention


def main() -> None:
    for variant in json.load(sys.stdin):
        record = recorder_of(variant)
        for kernel, arguments, constants in record(variant):
            flags = {
                n: constants[n]
                for n in ("FIRST", "LAST", "LOCAL", "SINKS", "BLOCK")
                if n in constants
            }
            result = compile_launch(kernel, arguments, dict(constants))
            print(json.dumps({**variant, **flags, **result}), flush=True)


if __name__ == "__main__":
    main()
