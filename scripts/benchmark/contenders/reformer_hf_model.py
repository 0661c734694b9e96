"""Our causal language model, with the default configuration wherever the case says nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmark.case import Case
from benchmark.contender import CHECK_LENGTH, Finding, check_close
from benchmark.contenders.language_model import (
    LanguageModelContender,
    common_fields,
    random_tokens,
)
from reformer_hf import ReformerConfig, ReformerForCausalLM
from reformer_hf.training_memory import estimate_memory


def model_config(case: Case, **changes: Any) -> ReformerConfig:
    """The configuration of the common model."""
    own = {"chunk_size_feed_forward": case.feed_forward_slice, **changes}
    return ReformerConfig(**{**common_fields(case), **own})


class ReformerHFModel(LanguageModelContender):
    """``ReformerForCausalLM`` of this package."""

    name = "reformer_hf"
    label = "reformer_hf"
    changes: ClassVar[dict[str, Any]] = {}

    def make(self, case: Case) -> nn.Module:
        """The model."""
        return ReformerForCausalLM(model_config(case, **self.changes))

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = model(tokens).logits
        return out

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """The model's own loss."""
        out: Tensor = model(tokens, labels=tokens).loss
        return out

    def estimate(self, case: Case) -> int | None:
        """What :func:`~reformer_hf.training_memory.estimate_memory` says."""
        estimate = estimate_memory(
            model_config(case, **self.changes),
            case.batch,
            case.length,
            dtype=case.torch_dtype,
            device=case.device_type,
        )
        return estimate.extra_peak

    def check(self, case: Case) -> list[Finding]:
        """Also that the backend in use computes what the reference computes."""
        findings = super().check(case)
        if all(finding.passed for finding in findings if finding.required):
            findings += self._compare_with_reference(case)
        return findings

    def _compare_with_reference(self, case: Case) -> list[Finding]:
        short = replace(
            case, length=CHECK_LENGTH - 3, depth=min(case.depth, 2), batch=1, dtype="float32"
        )
        results: list[tuple[Tensor, Tensor]] = []
        for backend in ("auto", "reference"):
            torch.manual_seed(case.seed)
            # Without the grid: rounding to it would turn the last bit of a float into 2^-13.
            config = model_config(
                short,
                **{
                    **self.changes,
                    "attention_backend": backend,
                    "exact_reversible": False,
                    "hash_seed": 1,
                },
            )
            model = ReformerForCausalLM(config).to(case.device).train()
            loss = self.loss(model, random_tokens(short))
            loss.backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            results.append((loss.detach(), torch.cat(gradients)))
        (loss, gradient), (expected_loss, expected_gradient) = results
        return [
            check_close("loss of the reference backend", loss, expected_loss, 1e-5),
            check_close("gradients of the reference backend", gradient, expected_gradient, 1e-3),
        ]


class ReformerHFPlain(ReformerHFModel):
    """The same layers through ordinary autograd, which stores activations."""

    name = "reformer_hf_plain"
    label = "reformer_hf, reversible=False"
    changes: ClassVar[dict[str, Any]] = {"reversible": False}


class ReformerHFChunk(ReformerHFModel):
    """The attention pattern of the original Reformer, which is not strictly causal."""

    name = "reformer_hf_chunk"
    label = "reformer_hf, chunk pattern"
    changes: ClassVar[dict[str, Any]] = {"attention_pattern": "chunk"}
    must_be_causal = False
