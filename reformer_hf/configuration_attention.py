"""Settings of ``attn_implementation="reformer"``, which a pretrained model keeps in its config.

They stand in ``config.reformer_attention`` as a plain dictionary, so that any transformers saves
and loads them with ``config.json``, whether or not this package is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from reformer_hf.choices import ATTENTION_BACKENDS

CONFIG_FIELD = "reformer_attention"


@dataclass(frozen=True)
class ReformerAttentionSettings:
    """What the layers of a pretrained model see.

    Attributes:
        local_window: tokens that a query sees around it: the last ones, itself included; in an
            encoder as many on either side.
        sink_tokens: first tokens that every query sees.
        num_hashes: rounds in which a query looks up keys beyond its local window.
        bucket_window: keys that it sees per round.
        num_buckets: of a round; ``None``: about one for every ``bucket_window`` keys.
        hash_seed: of the projections; every layer derives its own from it.
        dense_below: calls of up to so many tokens are what ``"sdpa"`` makes of them; ``None``:
            ``local_window``, up to which both see the same anyway.
        full_layers: indices of layers with full attention.
        local_layers: indices of layers with sinks and local window alone.
        sparse_decoding: a decoding step sees what its token would see in a pass over all tokens, as
            in training, and not the whole cache. For models that had long training in sparse
            attention; others know full attention better. A step hashes all keys again.
        backend: ``"auto"``, ``"torch"``, ``"triton"`` or ``"reference"``.

    Raises:
        ValueError: a value of the wrong type or outside its range, named.
    """

    local_window: int = 256
    sink_tokens: int = 4
    num_hashes: int = 4
    bucket_window: int = 64
    num_buckets: int | None = None
    hash_seed: int = 0
    dense_below: int | None = None
    full_layers: tuple[int, ...] = ()
    local_layers: tuple[int, ...] = ()
    sparse_decoding: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (
            ("local_window", 1),
            ("sink_tokens", 0),
            ("num_hashes", 0),
            ("bucket_window", 1),
            ("num_buckets", 1),
            ("hash_seed", 0),
            ("dense_below", 0),
        ):
            value = getattr(self, name)
            if value is None and name in ("num_buckets", "dense_below"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"`{CONFIG_FIELD}.{name}` must be a whole number of at least {least}, "
                    f"got {value!r}"
                )
        if self.num_buckets is not None and self.num_buckets > 1 and self.num_buckets % 2:
            raise ValueError(
                f"`{CONFIG_FIELD}.num_buckets` must be 1 or even, got {self.num_buckets}"
            )
        for name in ("full_layers", "local_layers"):
            object.__setattr__(self, name, _layers(name, getattr(self, name)))
        both = sorted(set(self.full_layers) & set(self.local_layers))
        if both:
            raise ValueError(
                f"a layer is of one kind: `{CONFIG_FIELD}.full_layers` and `.local_layers` both "
                f"name {both}"
            )
        if not isinstance(self.sparse_decoding, bool):
            raise ValueError(
                f"`{CONFIG_FIELD}.sparse_decoding` must be True or False, "
                f"got {self.sparse_decoding!r}"
            )
        if self.backend not in ATTENTION_BACKENDS:
            raise ValueError(
                f"`{CONFIG_FIELD}.backend` must be one of {ATTENTION_BACKENDS}, "
                f"got {self.backend!r}"
            )

    @property
    def longest_dense(self) -> int:
        """Tokens up to which a call is what ``"sdpa"`` makes of it."""
        return self.local_window if self.dense_below is None else self.dense_below

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``config.json`` holds them."""
        plain = asdict(self)
        return plain | {name: list(plain[name]) for name in ("full_layers", "local_layers")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReformerAttentionSettings:
        """The settings of a dictionary; fields that it lacks have their defaults.

        Raises:
            ValueError: not a dictionary, an unknown field, or a bad value.
        """
        known = [f.name for f in fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"`{CONFIG_FIELD}` must be a dictionary, got {values!r}")
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"`{CONFIG_FIELD}` knows the fields {known}, got {unknown}")
        return cls(**values)

    @classmethod
    def of(cls, config: object) -> ReformerAttentionSettings:
        """The settings that a model's configuration holds, or the defaults."""
        return cls.from_dict(getattr(config, CONFIG_FIELD, None) or {})

    def changed(self, **changes: Any) -> ReformerAttentionSettings:
        """These settings with other values of some fields.

        Raises:
            ValueError: an unknown field, or a bad value.
        """
        return self.from_dict({f.name: getattr(self, f.name) for f in fields(self)} | changes)

    def check_layers(self, num_layers: int) -> None:
        """Hold the layers that are named to those that there are.

        Raises:
            ValueError: an index of no layer.
        """
        for name in ("full_layers", "local_layers"):
            beyond = [i for i in getattr(self, name) if i >= num_layers]
            if beyond:
                raise ValueError(
                    f"`{CONFIG_FIELD}.{name}` must name layers 0 to {num_layers - 1}, got {beyond}"
                )


def _layers(name: str, value: Any) -> tuple[int, ...]:
    """Sorted indices of layers."""
    try:
        indices = sorted(set(value))
    except TypeError:
        indices = [None]
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in indices):
        raise ValueError(
            f"`{CONFIG_FIELD}.{name}` must be a list of layer indices from 0, got {value!r}"
        )
    return tuple(indices)
