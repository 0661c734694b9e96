"""The files in scripts/accelerate are what accelerate reads, and say what their names promise."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from reformer_hf import ReformerPreTrainedModel
from tests.ecosystem.launch import ROOT

FOLDER = ROOT / "scripts" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))


def launched(name: str) -> Namespace:
    """Arguments as `accelerate launch --config_file` completes them."""
    arguments = ["--config_file", str(FOLDER / name), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return args


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_every_file_and_knows_every_field(path: Path) -> None:
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.mixed_precision == "bf16"
    assert config.num_processes == written["num_processes"]
    args = launched(path.name)
    assert args.num_processes == written["num_processes"]
    assert args.training_script == "train.py"
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for field, value in written.get(section, {}).items():
            assert field.startswith(prefix)
            assert getattr(args, field) == value, field


def test_every_file_stands_on_the_page() -> None:
    page = (FOLDER / "README.md").read_text()
    assert len(FILES) == 6
    for path in FILES:
        assert path.name in page


def test_one_gpu_starts_the_script_itself() -> None:
    command, environment = prepare_simple_launcher_cmd_env(launched("one_gpu.yaml"))
    assert command[-1] == "train.py"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_many_gpus_start_one_process_each() -> None:
    args = launched("many_gpus.yaml")
    assert args.multi_gpu
    prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "8"


def test_gpus_that_share_texts_are_started_as_many_gpus_are() -> None:
    sharing, many = launched("sequence_parallel.yaml"), launched("many_gpus.yaml")
    for args in (sharing, many):
        args.config_file = None
    assert vars(sharing) == vars(many)


def test_processes_of_many_nodes_are_shared_among_them() -> None:
    args = launched("many_nodes.yaml")
    args.machine_rank = 1  # the first machine would look whether the port is free
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


def test_fsdp2_shards_the_modules_that_the_model_names() -> None:
    args = launched("fsdp2.yaml")
    assert args.use_fsdp
    environment = prepare_multi_gpu_env(args)
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in environment
    assert "ReformerLayer" not in ReformerPreTrainedModel._no_split_modules


def test_deepspeed_shards_no_weights() -> None:
    args = launched("deepspeed_zero2.yaml")
    assert args.use_deepspeed
    assert args.zero_stage == 2
