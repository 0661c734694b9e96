"""The models, in a file that travels with a shared checkpoint.

See ``configuration_reformer_hf.py`` for why it is there.
"""

from reformer_hf import (
    ReformerForCausalLM,
    ReformerForConditionalGeneration,
    ReformerForMaskedLM,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerForTokenClassification,
    ReformerModel,
    ReformerSeq2SeqModel,
)

__all__ = [
    "ReformerForCausalLM",
    "ReformerForConditionalGeneration",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerForTokenClassification",
    "ReformerModel",
    "ReformerSeq2SeqModel",
]
