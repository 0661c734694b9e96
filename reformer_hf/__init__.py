"""reformer_hf: the Reformer for transformers.

LSH attention, reversible layers and chunked feed-forward, strictly causal, exact, for any length.
Importing the package registers its models with transformers' Auto classes, and its attention as
``attn_implementation="reformer"`` for pretrained models.
"""

from reformer_hf import parallel
from reformer_hf.auto import make_shareable, register
from reformer_hf.cache import ReformerCache, ReformerEncoderDecoderCache
from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.causal_lm import ReformerForCausalLM
from reformer_hf.models.masked_lm import ReformerForMaskedLM
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.question_answering import ReformerForQuestionAnswering
from reformer_hf.models.seq2seq import ReformerForConditionalGeneration, ReformerSeq2SeqModel
from reformer_hf.models.sequence_classification import ReformerForSequenceClassification
from reformer_hf.models.token_classification import ReformerForTokenClassification
from reformer_hf.pretrained.attention_interface import register_attention
from reformer_hf.pretrained.configuring import configure_attention
from reformer_hf.pretrained.positions import extend_positions
from reformer_hf.tokenization import byte_tokenizer, train_bpe_tokenizer

__version__ = "0.1.0"

__all__ = [
    "ReformerCache",
    "ReformerConfig",
    "ReformerEncoderDecoderCache",
    "ReformerForCausalLM",
    "ReformerForConditionalGeneration",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerForTokenClassification",
    "ReformerModel",
    "ReformerPreTrainedModel",
    "ReformerSeq2SeqConfig",
    "ReformerSeq2SeqModel",
    "byte_tokenizer",
    "configure_attention",
    "extend_positions",
    "parallel",
    "register",
    "train_bpe_tokenizer",
]

# The facades import the names above from this very module, so they come last.
from reformer_hf import configuration_reformer_hf, modeling_reformer_hf  # noqa: F401

register()
register_attention()
make_shareable()
