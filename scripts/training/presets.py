"""Named model sizes for training from scratch, and the configurations they become.

| preset | hidden | heads | feed-forward | layers | decoder layers | made for         |
|--------|--------|-------|--------------|--------|----------------|------------------|
| tiny   | 32     | 2     | 64           | 2      | 1              | tests            |
| demo   | 128    | 4     | 512          | 2      | 2              | minutes on a CPU |
| small  | 256    | 4     | 1024         | 4      | 2              | hours on a CPU   |
| base   | 512    | 8     | 2048         | 6      | 6              | one GPU          |
| large  | 1024   | 16    | 4096         | 12     | 12             | several GPUs     |

"layers" are those of an encoder or of a model that has but one stack.
Layers alternate local attention (syntax, close by) and LSH attention (content, anywhere). A
summary is short, so its decoder attends fully.
"""

import json
from dataclasses import dataclass
from typing import Any

from reformer_hf import ReformerConfig, ReformerSeq2SeqConfig


@dataclass(frozen=True)
class Preset:
    """The numbers that make a size; everything else is the configuration's default."""

    hidden_size: int
    num_attention_heads: int
    feed_forward_size: int
    num_layers: int
    num_decoder_layers: int
    num_hashes: int = 2
    dropout: float = 0.1

    def shared_fields(self) -> dict[str, Any]:
        """The fields that encoders, decoders and language models have in common."""
        return {
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "attention_head_size": self.hidden_size // self.num_attention_heads,
            "feed_forward_size": self.feed_forward_size,
            "attn_layers": ["local" if i % 2 == 0 else "lsh" for i in range(self.num_layers)],
            "num_hashes": self.num_hashes,
            "hidden_dropout_prob": self.dropout,
        }


PRESETS = {
    "tiny": Preset(32, 2, 64, num_layers=2, num_decoder_layers=1, dropout=0.0),
    "demo": Preset(128, 4, 512, num_layers=2, num_decoder_layers=2, dropout=0.0),
    "small": Preset(256, 4, 1024, num_layers=4, num_decoder_layers=2),
    "base": Preset(512, 8, 2048, num_layers=6, num_decoder_layers=6, num_hashes=4),
    "large": Preset(1024, 16, 4096, num_layers=12, num_decoder_layers=12, num_hashes=4),
}
DEFAULT_PRESET = "small"
_SHORTEST_POSITION_TABLE = 256


def preset_named(name: str | None) -> Preset:
    """The preset called `name` (unset: `DEFAULT_PRESET`).

    Raises:
        ValueError: there is no such preset.
    """
    name = name or DEFAULT_PRESET
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]


def _position_table(length: int) -> int:
    """The next power of two: a size that factors well into axial position embeddings."""
    return max(_SHORTEST_POSITION_TABLE, 1 << (length - 1).bit_length())


def seq2seq_config(
    preset: Preset,
    *,
    max_source_length: int,
    max_target_length: int,
    token_fields: dict[str, Any],
    overrides: str | None = None,
) -> ReformerSeq2SeqConfig:
    """Configuration of a new encoder-decoder; `token_fields`: vocabulary size and token ids.

    Raises:
        ValueError: `overrides` cannot be read or make an impossible configuration.
    """
    fields = preset.shared_fields() | {
        "decoder_attn_layers": ["full"] * preset.num_decoder_layers,
        "max_position_embeddings": _position_table(max_source_length),
        "max_target_positions": _position_table(max_target_length),
        **token_fields,
    }
    return ReformerSeq2SeqConfig(**fields | parse_overrides(overrides))


def reformer_config(
    preset: Preset,
    *,
    max_length: int,
    token_fields: dict[str, Any],
    overrides: str | None = None,
) -> ReformerConfig:
    """Configuration of a new single-stack model (language model or classifier).

    Raises:
        ValueError: `overrides` cannot be read or make an impossible configuration.
    """
    fields = preset.shared_fields() | {
        "max_position_embeddings": _position_table(max_length),
        **token_fields,
    }
    return ReformerConfig(**fields | parse_overrides(overrides))


def parse_overrides(text: str | None) -> dict[str, Any]:
    """Configuration fields from `{"a": 1, "b": [2]}` or `a=1,b=0.5,c=word`.

    Example:
        >>> parse_overrides("hidden_size=64,attention_pattern=chunk")
        {'hidden_size': 64, 'attention_pattern': 'chunk'}

    Raises:
        ValueError: `text` is neither.
    """
    if text is None or not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"config_overrides: expected JSON, got {text!r}: {error}") from error
        return dict(fields)
    fields = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"config_overrides: expected key=value, got {item!r}")
        fields[key.strip()] = _json_or_word(value.strip())
    return fields


def _json_or_word(value: str) -> Any:
    try:
        return json.loads(value.lower() if value in ("True", "False") else value)
    except json.JSONDecodeError:
        return value
