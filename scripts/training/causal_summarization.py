"""Summarization with a causal language model: a prompt around the document, the summary behind it.

Training reads `prompt, summary, end` and counts the loss of the summary and its end alone; the head
is computed only from the first of them on. Rows are padded on the left, so that all summaries of a
batch end together, and generation continues the prompts with the model's cache.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from training.reporting import CardSeq2SeqTrainer
from training.scoring import IGNORED_LABEL

PLACEHOLDER = "{document}"


@dataclass(frozen=True)
class Prompt:
    """What stands before and behind a document, in token ids."""

    before: list[int]
    after: list[int]

    @classmethod
    def from_template(
        cls, tokenizer: PreTrainedTokenizerBase, template: str, *, chat: bool = False
    ) -> "Prompt":
        """The prompt of a template with one `{document}` in it.

        Args:
            tokenizer: of the model.
            template: for example "{document}\\n\\nSummary:\\n".
            chat: the template is what a user says, in the tokenizer's chat template.

        Raises:
            ValueError: a template without `{document}` or with several, or no chat template.
        """
        count = template.count(PLACEHOLDER)
        if count != 1:
            raise ValueError(f"prompt_template: expected {PLACEHOLDER} once, got it {count} times")
        first: list[int] = []
        if chat:
            if tokenizer.chat_template is None:
                raise ValueError(
                    "chat_prompt: expected a tokenizer with a chat template, got one without"
                )
            said = [{"role": "user", "content": template}]
            template = str(
                tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            )
        elif tokenizer.bos_token_id is not None:
            # What the tokenizer itself would put in front of a text, if it does.
            own = tokenizer("a").input_ids
            first = own[:1] if own[:1] == [tokenizer.bos_token_id] else []
        before, after = (
            tokenizer(part, add_special_tokens=False).input_ids if part else []
            for part in template.split(PLACEHOLDER)
        )
        return cls(first + before, after)

    def around(self, document: Sequence[int], length: int) -> list[int]:
        """The prompt of a document, cut to at most `length` tokens: the end of the prompt stays."""
        return [*self.before, *document[: self.room(length)], *self.after]

    def room(self, length: int) -> int:
        """Tokens of a document in a prompt of `length` tokens.

        Raises:
            ValueError: there are none.
        """
        room = length - len(self.before) - len(self.after)
        if room < 1:
            raise ValueError(
                "max_source_length: expected more than the prompt's"
                f" {len(self.before) + len(self.after)} tokens, got {length}"
            )
        return room


@dataclass(frozen=True)
class LeftPadding:
    """Collates rows with `input_ids` and `labels`, all of which end together."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels`, `[B, N]` int64."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> Tensor:
            texts = [list(row[name]) for row in rows]
            return torch.tensor([[value] * (length - len(ids)) + ids for ids in texts])

        mask = [[0] * (length - len(r["input_ids"])) + [1] * len(r["input_ids"]) for r in rows]
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": torch.tensor(mask),
            "labels": padded("labels", IGNORED_LABEL),
        }

    def prompts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a batch what stands before the summaries, padded on the left."""
        known = (batch["labels"] == IGNORED_LABEL) & batch["attention_mask"].bool()
        rows = [ids[own].tolist() for ids, own in zip(batch["input_ids"], known, strict=True)]
        found = self([{"input_ids": ids, "labels": ids} for ids in rows])
        device = batch["input_ids"].device
        return {name: found[name].to(device) for name in ("input_ids", "attention_mask")}


class NoRepeatedNGrams(NoRepeatNGramLogitsProcessor):
    """Forbids repeating what was *written*; what stands in the document may be quoted."""

    def __init__(self, size: int, prompt_length: int) -> None:
        super().__init__(size)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with minus infinity for what would repeat."""
        return super().__call__(input_ids[:, self.prompt_length :], scores)


def summary_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Mean cross-entropy of the labelled tokens, from the logits of the last positions alone.

    Args:
        outputs: with `logits` `[B, K, V]` of the last `K` positions.
        labels: `[B, N]` int64, none of them labelled before the last `K - 1`.
        num_items_in_batch: labelled tokens of the whole optimizer step, if it has several batches.
    """
    logits = outputs.logits[:, :-1].float().flatten(0, 1)
    targets = labels[:, labels.shape[1] - outputs.logits.shape[1] + 1 :].flatten()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    count = (targets != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    return total / count


@contextlib.contextmanager
def _own_precision(model: nn.Module) -> Iterator[None]:
    """The model without autocast: for one token casting the weights costs more than it saves.

    accelerate puts autocast around `forward` of the instance and keeps what was there.
    """
    wrapped = model.__dict__.get("forward")
    original = model.__dict__.get("_original_forward")
    if wrapped is None or original is None or next(model.parameters()).device.type != "cpu":
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped


class CausalSummaryTrainer(CardSeq2SeqTrainer):
    """Trains on `LeftPadding`'s batches and generates from their prompts.

    Args:
        no_repeat_ngram_size: generate no sequence of so many tokens twice; 0: off.
    """

    def __init__(self, *args: Any, no_repeat_ngram_size: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, compute_loss_func=summary_loss, **kwargs)
        self.no_repeat_ngram_size = no_repeat_ngram_size

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss, with logits from the token before the first summary on."""
        labelled = (inputs["labels"] != IGNORED_LABEL).any(dim=0).nonzero()
        length = inputs["labels"].shape[1]
        keep = length - int(labelled[0]) + 1 if len(labelled) else 1
        inputs = {**inputs, "logits_to_keep": keep, "use_cache": False}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, what the model writes behind the prompts, and the labels."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch).detach().mean()
        if prediction_loss_only or not self.args.predict_with_generate:
            return loss, None, batch["labels"]
        if not isinstance(self.data_collator, LeftPadding):
            raise TypeError(f"expected LeftPadding, got {type(self.data_collator).__name__}")
        prompts = self.data_collator.prompts(batch)
        chosen = gen_kwargs or getattr(self, "_gen_kwargs", {})
        written = self.write(prompts, **chosen)
        return loss, written, batch["labels"]

    @torch.no_grad()
    def write(self, prompts: dict[str, Tensor], **gen_kwargs: Any) -> Tensor:
        """The tokens that the model writes behind padded prompts, `[B, n]`."""
        length = prompts["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if self.no_repeat_ngram_size:
            processors.append(NoRepeatedNGrams(self.no_repeat_ngram_size, length))
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        gen_kwargs = {k: v for k, v in gen_kwargs.items() if v is not None}
        with _own_precision(model):
            written = model.generate(**prompts, logits_processor=processors, **gen_kwargs)
        return written[:, length:]


def check_training(training: Any) -> None:
    """Refuse training arguments that a causal summarizer cannot follow.

    Raises:
        ValueError: label smoothing, whose loss is another one.
    """
    if training.label_smoothing_factor:
        raise ValueError(
            "label_smoothing_factor: expected 0 with a causal language model, got"
            f" {training.label_smoothing_factor}"
        )
