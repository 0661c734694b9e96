"""One table: which Auto class opens which of our models."""

from __future__ import annotations

import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from reformer_hf.checkpoint_conversion import (
    ORIGINAL_MODEL_TYPE,
    OriginalReformerConfig,
)
from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.models.causal_lm import ReformerForCausalLM
from reformer_hf.models.masked_lm import ReformerForMaskedLM
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.question_answering import ReformerForQuestionAnswering
from reformer_hf.models.seq2seq import ReformerForConditionalGeneration, ReformerSeq2SeqModel
from reformer_hf.models.sequence_classification import ReformerForSequenceClassification
from reformer_hf.models.token_classification import ReformerForTokenClassification
from reformer_hf.tokenization import ReformerByteLevelTokenizer

CONFIGS: tuple[type[PreTrainedConfig], ...] = (ReformerConfig, ReformerSeq2SeqConfig)

# Auto class -> (configuration, model); each model stands under the class that its `auto_map` names.
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

# Auto classes that know the built-in Reformer and tell configurations apart by class name only, so
# that they would build it from a `ReformerConfig` of ours.
_MORE_AUTO_CLASSES: tuple[tuple[str, type[PreTrainedConfig], type[PreTrainedModel]], ...] = (
    ("AutoModelForTextEncoding", ReformerConfig, ReformerModel),
)

# Tables of class names that transformers asks what a model is for: `Trainer`, which labels to shift
# when it smooths them; a pipeline, whether it serves the model.
_NAME_TABLES: dict[str, str] = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


def make_shareable() -> None:
    """Let stock ``save_pretrained`` and ``push_to_hub`` write the facades and an ``auto_map``.

    transformers copies the file of a class's ``__module__``, so the public classes name a facade as
    their module. Must run after the facades were imported.
    """
    package = __name__.rpartition(".")[0]
    for config in CONFIGS:
        config.__module__ = f"{package}.configuration_reformer_hf"
        config.register_for_auto_class("AutoConfig")
    for auto_name, _, model in AUTO_TABLE:
        model.__module__ = f"{package}.modeling_reformer_hf"
        model.register_for_auto_class(auto_name)


def register(replace_builtin: bool = False) -> None:
    """Make transformers know our configurations and models; may be called again.

    Args:
        replace_builtin: Auto classes open checkpoints of transformers' own Reformer (``model_type``
            ``"reformer"``) as ours too; ``False``: they open them as transformers does. Our classes
            open them either way (see :mod:`reformer_hf.checkpoint_conversion`).

    Example:
        >>> from reformer_hf import register
        >>> register(replace_builtin=True)  # AutoModelForCausalLM.from_pretrained(..) gives ours
        >>> register(replace_builtin=False)  # and transformers' again
    """
    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoTokenizer.register(config, tokenizer_class=ReformerByteLevelTokenizer, exist_ok=True)
    for auto_name, config, model in (*AUTO_TABLE, *_MORE_AUTO_CLASSES):
        getattr(transformers, auto_name).register(config, model, exist_ok=True)
    for auto_name, config, model in AUTO_TABLE:
        getattr(modeling_auto, _NAME_TABLES[auto_name])[config.model_type] = model.__name__
    replaced = CONFIG_MAPPING[ORIGINAL_MODEL_TYPE] is OriginalReformerConfig
    if replace_builtin and not replaced:
        AutoConfig.register(ORIGINAL_MODEL_TYPE, OriginalReformerConfig, exist_ok=True)
    elif replaced and not replace_builtin:
        AutoConfig.register(ORIGINAL_MODEL_TYPE, transformers.ReformerConfig, exist_ok=True)
