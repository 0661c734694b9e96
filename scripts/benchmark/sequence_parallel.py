"""What it takes to share a document among processes: memory and time of a rank, bytes exchanged.

    python scripts/benchmark/sequence_parallel.py --lengths 16384 65536 --ranks 1 2 4 \\
        --output scripts/benchmark/results/sequence-parallel

For every number of ranks and every length a training step of the common causal language model
(local and LSH layers in turn) is taken by processes of their own under `torchrun`, one thread each.
Memory is the peak of a rank above what it holds before its first step, gradients of weights counted
out; time is the median of later steps, with the part that exchanges take. What communication would
take on other links follows from the bytes that were sent, not from a measurement. OUTPUT.json and
OUTPUT.md are written after every case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

_SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_SCRIPTS))

from benchmark.environment import describe_environment  # noqa: E402
from benchmark.memory_use import PeakMemory, return_freed_memory  # noqa: E402
from reformer_hf import ReformerConfig, ReformerForCausalLM  # noqa: E402
from reformer_hf.ops import sequence_group  # noqa: E402
from reformer_hf.parallel import split_batch, split_sequence  # noqa: E402
from reformer_hf.training_memory import estimate_memory  # noqa: E402

# Bytes a second, each way, of a GPU: NVLink 4 (an H100 has 900 GB/s in both directions together),
# and Ethernet of 400 Gb/s.
LINKS = {"NVLink, 450 GB/s": 450e9, "Ethernet, 400 Gb/s": 50e9}
_LENGTHS_ON_PAPER = (1_000_000, 4_000_000, 10_000_000)


class Exchanges:
    """Bytes and seconds of the exchanges of tensors, while they are counted.

    Attributes:
        sent: bytes that this rank sent to others.
        seconds: spent in exchanges, waiting for the other ranks included.
    """

    def __init__(self) -> None:
        self.sent, self.seconds = 0, 0.0
        whole = sequence_group.SequenceGroup._all_to_all

        def counted(
            group: Any, parts: Tensor, sent: Sequence[int], received: Sequence[int]
        ) -> Tensor:
            started = time.perf_counter()
            found = whole(group, parts, sent, received)
            self.seconds += time.perf_counter() - started
            others = sum(sent) - sent[group.rank]
            self.sent += others * parts.element_size()
            return found

        sequence_group.SequenceGroup._all_to_all = counted  # type: ignore[method-assign,assignment]

    def reset(self) -> None:
        """Count from here."""
        self.sent, self.seconds = 0, 0.0


def configuration(depth: int, width: int, length: int) -> ReformerConfig:
    """The common model of the benchmarks, with local layers between the LSH layers."""
    return ReformerConfig(
        attn_layers=["local", "lsh"] * (depth // 2),
        hidden_size=width,
        num_attention_heads=width // 64,
        attention_head_size=64,
        feed_forward_size=4 * width,
        vocab_size=320,
        num_hashes=2,
        max_position_embeddings=max(65536, length),
        chunk_size_feed_forward=4096,
        chunk_size_lm_head=4096,
        hash_seed=0,
    )


def measure(arguments: argparse.Namespace) -> None:
    """One rank's part of a case; the first rank writes what all of them found."""
    torch.set_num_threads(1)
    return_freed_memory(eager=True)
    distributed.init_process_group("gloo")
    rank, ranks, length = distributed.get_rank(), distributed.get_world_size(), arguments.length
    torch.manual_seed(0)
    built = ReformerForCausalLM(configuration(arguments.depth, arguments.width, length)).train()
    exchanges = Exchanges()
    tokens = torch.randint(0, 320, (1, length))
    model: Any = built
    if ranks > 1:
        split_sequence(built, init_device_mesh("cpu", (ranks,)))
        model = DistributedDataParallel(built, gradient_as_bucket_view=True)
    part = split_batch(model, {"input_ids": tokens, "labels": tokens})

    def step(model: Any = model) -> float:
        loss = model(**part).loss
        loss.backward()
        return float(loss.detach())

    small = split_batch(model, {"input_ids": tokens[:, :512], "labels": tokens[:, :512]})
    model(**small).loss.backward()  # makes the gradients, and what libraries start with
    peak = PeakMemory(torch.device("cpu"))
    exchanges.reset()
    started = time.perf_counter()
    loss = step()
    seconds, waited = [time.perf_counter() - started], [exchanges.seconds]
    found: dict[str, Any] = {"extra_bytes": peak.extra(), "loss": loss}
    if arguments.steps:
        seconds, waited = [], []
    for _ in range(arguments.steps):
        distributed.barrier()
        exchanges.reset()
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
        waited.append(exchanges.seconds)
    found |= {"seconds": seconds, "exchange_seconds": waited, "sent_bytes": exchanges.sent}
    of_all: list[Any] = [None] * ranks
    distributed.all_gather_object(of_all, found)
    if rank == 0:
        Path(arguments.result).write_text(json.dumps(of_all), encoding="utf-8")
    del step, model  # DDP's reducer must not be the last to hold the process group
    distributed.destroy_process_group()


def run_case(arguments: argparse.Namespace, length: int, ranks: int) -> dict[str, Any]:
    """What the ranks of one case found, in one row."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(ranks), str(Path(__file__).resolve()), "--result", result),
            *("--length", length, "--depth", arguments.depth, "--width", arguments.width),
            *("--steps", arguments.steps),
        ]
        subprocess.run([*map(str, command)], check=True, timeout=arguments.time_limit)
        found = json.loads(result.read_text(encoding="utf-8"))
    config = configuration(arguments.depth, arguments.width, length)
    estimate = estimate_memory(config, 1, length, sequence_parallel_size=ranks)
    seconds = statistics.median(max(t) for t in zip(*(f["seconds"] for f in found), strict=True))
    waited = statistics.median(
        statistics.mean(t) for t in zip(*(f["exchange_seconds"] for f in found), strict=True)
    )
    tokens = length // ranks
    return {
        "length": length,
        "ranks": ranks,
        "loss": found[0]["loss"],
        "extra_bytes": max(f["extra_bytes"] for f in found),
        "estimated_bytes": estimate.extra_peak - estimate.gradients,
        "seconds": seconds,
        "exchange_seconds": waited,
        "sent_bytes_per_layer_and_token": max(f["sent_bytes"] for f in found)
        / (arguments.depth * tokens),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as a table, each next to one rank at its length."""
    whole = {row["length"]: row for row in rows if row["ranks"] == 1}
    lines = [
        "| tokens | ranks | activations, MiB | to one rank | estimated, MiB | step, s "
        "| to one rank | exchanges, s | sent, bytes a layer and token |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        one = whole.get(row["length"], row)
        lines.append(
            f"| {row['length']:,} | {row['ranks']} | {row['extra_bytes'] / 2**20:,.0f} "
            f"| {row['extra_bytes'] / one['extra_bytes']:.2f} "
            f"| {row['estimated_bytes'] / 2**20:,.0f} | {row['seconds']:.1f} "
            f"| {row['seconds'] / one['seconds']:.2f} | {row['exchange_seconds']:.1f} "
            f"| {row['sent_bytes_per_layer_and_token']:,.0f} |"
        )
    return lines


def on_paper(sent: float, measured_width: int, ranks: int) -> list[str]:
    """Shares of a step that exchanges would take on 8 GPUs, and the longest document.

    Args:
        sent: bytes a layer and token that were sent in fp32, at ``ranks``.
        measured_width: width of the model that was measured.
        ranks: at which.
    """
    depth, width, gpus = 12, 1024, 8
    # All features of a token go to the other ranks but for the own share; bf16 halves the bytes.
    per_token = sent / (1 - 1 / ranks) * (1 - 1 / gpus) * (width / measured_width) / 2
    # Forward products twice, and twice as many backward: 8 operations a weight and token.
    weights = depth * 11.5 * width * width
    lines = [
        f"On paper, {depth} layers of width {width} on {gpus} GPUs, bf16: {per_token:,.0f} bytes "
        "a layer and token; arithmetic at 300 TFLOP/s (a third of an H100's peak) for "
        f"{weights / 1e6:.0f} million weights, the forward pass twice, attention left out.",
        "",
        "| tokens | arithmetic, s | " + " | ".join(f"{name}: s (share)" for name in LINKS) + " |",
        "|---:|---:|" + "---:|" * len(LINKS),
    ]
    for length in _LENGTHS_ON_PAPER:
        arithmetic = 8 * weights * length / gpus / 300e12
        cells = []
        for speed in LINKS.values():
            exchange = per_token * depth * length / gpus / speed
            cells.append(f"{exchange:.3f} ({exchange / (exchange + arithmetic):.0%})")
        lines.append(f"| {length:,} | {arithmetic:.2f} | " + " | ".join(cells) + " |")
    for number in (1, gpus):
        longest = longest_document(number, depth, width)
        lines += [
            "",
            f"Longest document on {number} × 80 GB by `estimate_memory`: {longest:,} tokens.",
        ]
    return lines


def longest_document(ranks: int, depth: int, width: int, room: float = 80e9) -> int:
    """The longest document of which a step (bf16, AdamW) fits, in multiples of 2**16 tokens."""
    unit = 1 << 16

    def fits(length: int) -> bool:
        config = configuration(depth, width, length)
        estimate = estimate_memory(
            *(config, 1, length),
            dtype=torch.bfloat16,
            device="cuda",
            sequence_parallel_size=ranks,
        )
        return estimate.total <= room

    low, high = 1, 2
    while fits(high * unit):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit


def write(stem: Path, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Numbers and their tables."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(1, "cpu")
    settings = {name: getattr(arguments, name) for name in ("depth", "width", "steps")}
    document = {"environment": environment, "settings": settings, "rows": rows}
    text = json.dumps(document, indent=1)
    stem.with_name(f"{stem.name}.json").write_text(text + "\n", encoding="utf-8")
    machine = environment["machine"]
    lines = [
        "# One document over several processes",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, one thread a rank, fp32, gloo on one "
        f"machine; {arguments.depth} layers of width {arguments.width}, local and LSH (2 rounds) "
        "in turn. More ranks than cores take turns, so that only their memory means something.",
        "",
        *table(rows),
        "",
    ]
    shared = [row for row in rows if row["ranks"] > 1]
    if shared:
        last = shared[-1]
        lines += on_paper(last["sent_bytes_per_layer_and_token"], arguments.width, last["ranks"])
    stem.with_name(f"{stem.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add: Callable[..., Any] = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[16384, 65536], help="tokens of a document")
    add("--ranks", type=int, nargs="+", default=[1, 2], help="processes that share it")
    add("--depth", type=int, default=6, help="layers")
    add("--width", type=int, default=512, help="of the streams; a head for every 64")
    add("--steps", type=int, default=2, help="that are timed; 0: the first, that of the memory")
    add("--time-limit", type=float, default=1800.0, help="seconds of a case")
    add("--output", type=Path, help="where results go, without an ending")
    add("--result", help=argparse.SUPPRESS)
    add("--length", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result is not None:
        measure(arguments)
        return
    if arguments.output is None:
        parser.error("--output is needed: where results go")
    rows: list[dict[str, Any]] = []
    for length in arguments.lengths:
        for ranks in arguments.ranks:
            rows.append(run_case(arguments, length, ranks))
            print("\n".join(table(rows)), flush=True)
            write(arguments.output, arguments, rows)


if __name__ == "__main__":
    main()
