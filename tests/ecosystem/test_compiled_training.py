"""`Trainer(torch_compile=True)` trains as it does without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem.test_trainer import losses, rows_of, trainer_of
from tests.models.builders import HEAD_OF, NO_DROPOUT


# Looked at by torch's tracer itself, where it resumes after a part that it does not trace.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_compiling_changes_no_loss(name: str, tmp_path: Path) -> None:
    head = HEAD_OF[name]
    found = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        model = head.build(hash_seed=3, **NO_DROPOUT)
        trainer = trainer_of(head, model, tmp_path, rows_of(head), max_steps=2, **options)
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
