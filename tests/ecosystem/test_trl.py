"""TRL's `SFTTrainer` fine-tunes a causal model on a local file, whole or by adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from reformer_hf import byte_tokenizer
from tests.models.builders import HEAD_OF

LINES = [{"text": f"line {number} of a text about buckets and rounds"} for number in range(12)]


# TRL says so by default, under the older of two names.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "lora"])
def test_a_causal_model_learns_a_local_file(adapters: bool, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(append_eos=False)
    model = HEAD_OF["causal_lm"].build(vocab_size=len(tokenizer))
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    data = load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = LoraConfig(target_modules=["query_key", "value", "inner"], r=4, task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=3e-2,
            logging_steps=1,
            max_length=64,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=lora if adapters else None,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    after = model.state_dict()
    kept = [name for name in before if name in after and torch.equal(before[name], after[name])]
    assert bool(kept) is adapters
