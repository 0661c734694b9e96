"""One table: which Auto class opens which of our models."""

from __future__ import annotations

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.models.causal_lm import ReformerForCausalLM
from reformer_hf.models.masked_lm import ReformerForMaskedLM
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.question_answering import ReformerForQuestionAnswering
from reformer_hf.models.seq2seq import ReformerForConditionalGeneration, ReformerSeq2SeqModel
from reformer_hf.models.sequence_classification import ReformerForSequenceClassification
from reformer_hf.models.token_classification import ReformerForTokenClassification

CONFIGS: tuple[type[PreTrainedConfig], ...] = (ReformerConfig, ReformerSeq2SeqConfig)

# Auto class -> (configuration, model). The first class named for a model is the one that a shared
# checkpoint's `auto_map` names.
AUTO_TABLE: tuple[tuple[str, type[PreTrainedConfig], type[PreTrainedModel]], ...] = (
    ("AutoModel", ReformerConfig, ReformerModel),
    ("AutoModelForCausalLM", ReformerConfig, ReformerForCausalLM),
    ("AutoModelForMaskedLM", ReformerConfig, ReformerForMaskedLM),
    (
        "AutoModelForSequenceClassification",
        ReformerConfig,
        ReformerForSequenceClassification,
    ),
    ("AutoModelForTokenClassification", ReformerConfig, ReformerForTokenClassification),
    ("AutoModelForQuestionAnswering", ReformerConfig, ReformerForQuestionAnswering),
    ("AutoModel", ReformerSeq2SeqConfig, ReformerSeq2SeqModel),
    ("AutoModelForSeq2SeqLM", ReformerSeq2SeqConfig, ReformerForConditionalGeneration),
)


def register() -> None:
    """Make transformers' Auto classes know our configurations and models; may be called again.

    The built-in Reformer (``model_type`` ``"reformer"``) is left as it is.
    """
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto_name, config, model in AUTO_TABLE:
        getattr(transformers, auto_name).register(config, model, exist_ok=True)
