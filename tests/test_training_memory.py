"""The memory estimate: how it depends on the configuration, and how near it comes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers

from reformer_hf import (
    ReformerConfig,
    ReformerForCausalLM,
    ReformerForConditionalGeneration,
    ReformerSeq2SeqConfig,
    register,
)
from reformer_hf.training_memory import MemoryEstimate, estimate_memory, main

ROOT = Path(__file__).resolve().parents[1]


def config_of(**changes) -> ReformerConfig:
    return ReformerConfig(**{"attn_layers": ["lsh"] * 2, **changes})


def activations(estimate: MemoryEstimate) -> tuple[int, int, int]:
    return estimate.streams, estimate.sublayer, estimate.logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_do_not_grow_with_depth(dtype):
    shallow = estimate_memory(config_of(attn_layers=["lsh"] * 2), 1, 8192, dtype=dtype)
    deep = estimate_memory(config_of(attn_layers=["lsh"] * 24), 1, 8192, dtype=dtype)
    assert activations(deep) == activations(shallow)
    assert deep.gradients > 6 * shallow.gradients


def test_activations_grow_with_depth_where_they_are_stored():
    shallow, deep = (
        estimate_memory(config_of(attn_layers=["lsh"] * depth, reversible=False), 1, 8192)
        for depth in (2, 24)
    )
    assert deep.streams == 12 * shallow.streams


@pytest.mark.parametrize("kind", ["lsh", "local", "full", "hybrid"])
def test_activations_are_linear_in_the_length(kind):
    config = config_of(attn_layers=[kind] * 2)
    once, twice = (estimate_memory(config, 1, length) for length in (32768, 65536))
    for small, large in zip(activations(once), activations(twice), strict=True):
        assert large == pytest.approx(2 * small, rel=0.05)
    assert (once.parameters, once.gradients) == (twice.parameters, twice.gradients)


def test_activations_of_a_batch_are_those_of_a_long_sequence_but_for_the_slices():
    config = config_of(chunk_size_feed_forward=0)
    long, batch = estimate_memory(config, 1, 32768), estimate_memory(config, 8, 4096)
    assert batch.streams == long.streams
    assert batch.logits == long.logits
    assert batch.sublayer == pytest.approx(long.sublayer, rel=0.25)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (config_of(), ReformerForCausalLM),
        (config_of(tie_word_embeddings=False), ReformerForCausalLM),
        (config_of(attn_layers=["full", "local"], head_merge="average"), ReformerForCausalLM),
        (ReformerSeq2SeqConfig(attn_layers=["local"]), ReformerForConditionalGeneration),
    ],
    ids=["tied", "untied", "average", "seq2seq"],
)
def test_parameters_are_counted_exactly(config, model):
    estimate = estimate_memory(config, 1, 64)
    expected = sum(p.numel() for p in model(config).parameters()) * 4
    assert (estimate.parameters, estimate.gradients) == (expected, expected)


def test_an_optimizer_keeps_what_it_keeps():
    sizes = {name: estimate_memory(config_of(), 1, 64, optimizer=name) for name in ("adamw", "sgd")}
    assert sizes["adamw"].optimizer == 2 * sizes["adamw"].parameters
    assert sizes["sgd"].optimizer == 0
    assert sizes["adamw"].extra_peak == sizes["sgd"].extra_peak


def test_the_total_is_the_sum_of_what_is_there_together():
    estimate = MemoryEstimate(100, 100, 200, streams=10, sublayer=40, logits=50)
    assert estimate.extra_peak == 10 + 100 + 40
    assert estimate.total == 100 + 200 + 150
    assert MemoryEstimate(1, 1, 2, streams=10, sublayer=40, logits=50).extra_peak == 60
    assert MemoryEstimate(1, 1, 2, streams=10, sublayer=40, logits=50, reserve=7).extra_peak == 67
    held = MemoryEstimate(20, 20, 2, streams=10, sublayer=40, logits=1, reserve=60, held=50)
    assert held.extra_peak == 10 + 50 + 40


def test_what_is_kept_fits_where_gradients_will_be_or_is_a_few_streams_of_at_most_256_mib():
    lengths = (64, 512, 65536, 1 << 20)
    config = config_of(max_position_embeddings=1 << 20)
    short, medium, long, longest = (estimate_memory(config, 1, n) for n in lengths)
    assert 0 < short.reserve < medium.reserve <= medium.gradients
    assert medium.gradients < long.reserve <= min(4 * long.streams, 1 << 28)
    assert longest.reserve == 0
    assert estimate_memory(config_of(reversible=False), 1, 64).reserve == 0
    # The only layer's part is used up by its own sub-layers.
    assert estimate_memory(config_of(attn_layers=["lsh"]), 1, 8192).held == 0 < medium.held


def test_what_saves_memory_is_seen_to():
    def peak(dtype=torch.float32, **changes) -> int:
        return estimate_memory(config_of(**changes), 1, 16384, dtype=dtype).extra_peak

    assert peak(torch.bfloat16) < peak()
    assert peak() < peak(reversible=False)
    assert peak() < peak(chunk_size_feed_forward=0, feed_forward_size=8192)
    words = {"vocab_size": 32000}
    assert peak(**words, chunk_size_lm_head=512) < peak(**words) / 3


@pytest.mark.parametrize("kind", ["lsh", "local", "full", "hybrid"])
def test_ranks_that_share_a_sequence_share_its_activations(kind):
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "feed_forward_size": 4096}
    config = config_of(attn_layers=[kind] * 2, max_position_embeddings=1 << 20, **sizes)
    whole = estimate_memory(config, 1, 1 << 19)
    parts = estimate_memory(config, 1, 1 << 19, sequence_parallel_size=2)
    assert parts.streams == whole.streams // 2
    assert (parts.parameters, parts.gradients) == (whole.parameters, whole.gradients)
    ratio = (parts.extra_peak - parts.gradients) / (whole.extra_peak - whole.gradients)
    # What a kernel forms for one head at a time is as large for a rank as for one process.
    assert 0.5 <= ratio < 0.5 * 1.2


def test_a_longer_target_takes_more():
    config = ReformerSeq2SeqConfig()
    short, long = (estimate_memory(config, 2, 4096, target_length=n) for n in (64, 1024))
    assert short.logits < long.logits
    assert short.extra_peak <= long.extra_peak
    assert estimate_memory(config, 2, 4096) == long


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_parallel_size": 0}, "`sequence_parallel_size` must be a positive integer"),
        ({"sequence_parallel_size": 3}, "must divide num_attention_heads=4, got 3"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
        ({"length": 1.5}, "`length` must be a positive integer, got 1.5"),
        ({"length": 65537}, "`length` must be at most max_position_embeddings=65536, got 65537"),
        ({"target_length": 3}, "`target_length` is for a ReformerSeq2SeqConfig, got 3"),
        ({"dtype": torch.int8}, "`dtype` must be one of .*, got torch.int8"),
        ({"optimizer": "lion"}, "`optimizer` must be one of .*, got 'lion'"),
        ({"device": "tpu"}, "`device` must be 'cpu' or 'cuda', got 'tpu'"),
        ({"config": {}}, "`config` must be a ReformerConfig, got dict"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(arguments, message):
    given = {"config": config_of(), "batch_size": 1, "length": 64, **arguments}
    with pytest.raises(ValueError, match=message):
        estimate_memory(**given)


def test_a_target_has_a_longest_length():
    with pytest.raises(ValueError, match="at most max_target_positions=1024, got 1025"):
        estimate_memory(ReformerSeq2SeqConfig(), 1, 64, target_length=1025)


def test_the_command_prints_a_table(tmp_path, capsys):
    config_of().save_pretrained(tmp_path)
    main(["--config", str(tmp_path), "--length", "16384", "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    expected = estimate_memory(config_of(), 1, 16384, dtype=torch.bfloat16)
    assert f"{expected.total / 2**20:,.1f} MiB" in printed
    for word in ("parameters", "gradients", "optimizer", "streams", "logits"):
        assert word in printed


@pytest.mark.parametrize("replaced", [False, True], ids=["as-transformers-opens-it", "as-ours"])
def test_the_command_reads_checkpoints_of_transformers_reformer(tmp_path, capsys, replaced):
    """Whoever opens the configuration first, the Auto class or ours."""
    old = transformers.ReformerConfig(
        attn_layers=["local", "lsh"], hidden_size=256, is_decoder=True
    )
    old.save_pretrained(tmp_path)
    register(replace_builtin=replaced)
    try:
        main(["--config", str(tmp_path), "--length", "4096"])
    finally:
        register(replace_builtin=False)
    ours = ReformerForCausalLM(ReformerConfig.from_pretrained(tmp_path))
    size = 4 * sum(p.numel() for p in ours.parameters())
    assert f"{size / 2**20:,.1f} MiB" in capsys.readouterr().out.splitlines()[0]
    assert estimate_memory(old, 1, 4096).parameters == size


def test_the_help_says_how_to_write_a_configuration(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    code = re.search(r"\n\n((?:  .*\n)+)\nReformerSeq2SeqConfig", capsys.readouterr().out)[1]
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(code))
    main(["--config", "my-config", "--length", "1024"])
    assert "total" in capsys.readouterr().out


def test_the_command_refuses_a_length_that_cannot_be(tmp_path, capsys):
    config_of().save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path), "--length", "65537"])
    assert "at most max_position_embeddings=65536, got 65537" in capsys.readouterr().err


# ---- against the truth ----

_MEASURE = """
import json, sys
import torch
from reformer_hf import ReformerConfig, ReformerForCausalLM
from benchmark.memory_use import PeakMemory

settings, length, dtype = json.loads(sys.argv[1])
torch.set_num_threads(1)


def step(model, length):
    tokens = torch.randint(0, 300, (1, length))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = model(tokens, labels=tokens).loss
    loss.backward()


model = ReformerForCausalLM(ReformerConfig(**settings)).train()
step(model, 256)  # what libraries set up once is not the model's
model.zero_grad(set_to_none=True)
peak = PeakMemory(torch.device("cpu"))
step(model, length)
print(peak.extra())
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak"
)
@pytest.mark.parametrize(
    ("changes", "length", "dtype"),
    [
        ({}, 8192, "float32"),
        ({}, 8192, "bfloat16"),
        ({"attn_layers": ["lsh"] * 4}, 16384, "float32"),
        ({"attn_layers": ["local", "full"], "vocab_size": 6000}, 2048, "float32"),
        ({"attn_layers": ["lsh"] * 4, "vocab_size": 12000}, 1024, "float32"),
    ],
    ids=["lsh", "lsh-bf16", "kept", "local-full-logits", "kept-and-logits"],
)
def test_the_estimate_is_within_a_fifth_of_what_is_measured(changes, length, dtype):
    settings = {"attn_layers": ["lsh"], "hidden_dropout_prob": 0.0, **changes}
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # The C library returns what is freed, so that the resident set is what is in use.
        "MALLOC_MMAP_THRESHOLD_": "262144",
        "MALLOC_TRIM_THRESHOLD_": "262144",
    }
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps([settings, length, dtype])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    estimate = estimate_memory(
        ReformerConfig(**settings), 1, length, dtype=getattr(torch, dtype)
    ).extra_peak
    assert estimate == pytest.approx(int(result.stdout), rel=0.2)
