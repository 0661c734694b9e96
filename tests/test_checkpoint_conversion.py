"""Checkpoints of transformers' own Reformer open as ours and compute the same.

Parity is held to the installed transformers, with random weights, in fp32: hidden states, logits,
loss and every gradient. What the original gets wrong is shown at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping

import reformer_hf
from reformer_hf.checkpoint_conversion import (
    convert_config,
    convert_state_dict,
    original_names_known,
)

TOLERANCE = 1e-4

# Head -> the original's class, ours.
CLASSES = {
    "model": ("ReformerModel", "ReformerModel"),
    "causal_lm": ("ReformerModelWithLMHead", "ReformerForCausalLM"),
    "masked_lm": ("ReformerForMaskedLM", "ReformerForMaskedLM"),
    "classification": ("ReformerForSequenceClassification", "ReformerForSequenceClassification"),
    "question_answering": ("ReformerForQuestionAnswering", "ReformerForQuestionAnswering"),
}

VOCAB = 60
LENGTH = 128
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "attention_head_size": 12,
    "attn_layers": ["local", "lsh"],
    "feed_forward_size": 40,
    "axial_pos_shape": [8, 16],
    "axial_pos_embds_dim": [8, 24],
    "max_position_embeddings": LENGTH,
    "lsh_attn_chunk_length": 16,
    "local_attn_chunk_length": 16,
    "num_buckets": 8,
    "num_hashes": 2,
    "hash_seed": 3,
    "hidden_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
}

# The config.json of `google/reformer-enwik8` and of `google/reformer-crime-and-punishment`.
ENWIK8: dict[str, Any] = {
    "attention_head_size": 128,
    "attn_layers": [*["local", "local", "lsh", "local"] * 3],
    "axial_norm_std": 1.0,
    "axial_pos_embds": True,
    "axial_pos_embds_dim": [256, 768],
    "axial_pos_shape": [128, 512],
    "chunk_size_feed_forward": 0,
    "chunk_size_lm_head": 0,
    "eos_token_id": 2,
    "feed_forward_size": 4096,
    "hash_seed": None,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.2,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "is_decoder": True,
    "layer_norm_eps": 1e-12,
    "local_attention_probs_dropout_prob": 0.2,
    "local_attn_chunk_length": 128,
    "local_num_chunks_after": 0,
    "local_num_chunks_before": 1,
    "lsh_attention_probs_dropout_prob": 0.1,
    "lsh_attn_chunk_length": 256,
    "lsh_num_chunks_after": 0,
    "lsh_num_chunks_before": 1,
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "num_buckets": 512,
    "num_hashes": 4,
    "pad_token_id": 0,
    "vocab_size": 258,
}
CRIME_AND_PUNISHMENT: dict[str, Any] = {
    **ENWIK8,
    "attention_head_size": 64,
    "attn_layers": [*["local", "lsh"] * 3],
    "axial_pos_embds_dim": [64, 192],
    "axial_pos_shape": [512, 1024],
    "feed_forward_size": 512,
    "hidden_dropout_prob": 0.05,
    "hidden_size": 256,
    "local_attn_chunk_length": 64,
    "lsh_attn_chunk_length": 64,
    "max_position_embeddings": 524288,
    "num_attention_heads": 2,
    "num_buckets": [64, 128],
    "num_hashes": 1,
    "vocab_size": 320,
}
PUBLISHED = pytest.mark.parametrize(
    "published", [ENWIK8, CRIME_AND_PUNISHMENT], ids=["enwik8", "crime-and-punishment"]
)
NARROW: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "axial_pos_embds_dim": [12, 36],
    "feed_forward_size": 64,
    "hash_seed": 5,
}
NO_DROPOUT: dict[str, Any] = {
    "hidden_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0,
}


def build_original(head: str, fields: dict[str, Any]) -> Any:
    """A model of transformers with random numbers everywhere, in training mode.

    All but the bias of the language-model head, which it leaves out of the logits.
    """
    config = transformers.ReformerConfig(**fields)
    if head in ("causal_lm", "masked_lm"):
        config.is_decoder = head == "causal_lm"
    model = getattr(transformers, CLASSES[head][0])(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name != "lm_head.bias":
            parameter.data.add_(noise, alpha=0.1 if parameter.dim() > 1 else 0.2)
    return model.train()


def open_as_ours(original: Any, head: str, folder: Path, **settings: Any) -> Any:
    """The same weights through a directory, in training mode; nothing may be missing or left."""
    original.save_pretrained(folder)
    model, info = getattr(reformer_hf, CLASSES[head][1]).from_pretrained(
        folder, output_loading_info=True, **settings
    )
    assert not any(info.values()), info
    return model.train()


def build_pair(head: str, folder: Path, **overrides: Any) -> tuple[Any, Any]:
    original = build_original(head, {**TINY, **overrides})
    return original, open_as_ours(original, head, folder)


def random_ids(batch: int, length: int, vocab: int = VOCAB) -> Tensor:
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(2))


def right_padding(batch: int, length: int) -> Tensor:
    """A mask whose rows have fewer and fewer real tokens; the first has no padding."""
    lengths = torch.tensor([length - (length * row) // (batch + 1) for row in range(batch)])
    return (torch.arange(length) < lengths.unsqueeze(1)).long()


def labels_for(head: str, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    if head in ("causal_lm", "masked_lm"):
        return {"labels": ids if mask is None else ids.masked_fill(mask == 0, -100)}
    if head == "classification":
        return {"labels": torch.arange(ids.shape[0]) % 3}
    if head == "question_answering":
        return {
            "start_positions": torch.arange(ids.shape[0]),
            "end_positions": torch.full((ids.shape[0],), ids.shape[1] // 2),
        }
    return {}


def scores_of(output: Any) -> list[Tensor]:
    names = ("last_hidden_state", "logits", "start_logits", "end_logits")
    return [output[name] for name in names if name in output]


def assert_same_scores(theirs: Any, ours: Any, mask: Tensor | None = None) -> None:
    """Of real tokens: what is computed for padding means nothing, in either."""
    pairs = list(zip(scores_of(theirs), scores_of(ours), strict=True))
    assert pairs
    for expected, actual in pairs:
        if mask is not None and expected.shape[:2] == mask.shape:
            expected, actual = expected[mask.bool()], actual[mask.bool()]
        torch.testing.assert_close(actual, expected, rtol=0.0, atol=TOLERANCE)


def gradients_of(original: Any) -> dict[str, Tensor]:
    return convert_state_dict(
        {n: p.grad for n, p in original.named_parameters() if p.grad is not None}
    )


def assert_same_gradients(original: Any, ours: Any, tolerance: float = TOLERANCE) -> None:
    """Of all parameters, up to `tolerance` times the largest number in each gradient.

    (Or a thousandth of the largest in any: some are zero but for rounding.) All but the bias of the
    language-model head, which the original never uses.
    """
    expected = gradients_of(original)
    actual = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    actual.pop("lm_head.bias", None)
    assert actual.keys() == expected.keys()
    largest = {name: float(wanted.abs().max()) for name, wanted in expected.items()}
    least = 1e-3 * max(largest.values())
    for name, wanted in expected.items():
        difference = float((actual[name] - wanted).abs().max())
        assert difference <= tolerance * max(largest[name], least), name


def assert_same_training_step(
    original: Any, ours: Any, head: str, ids: Tensor, mask: Tensor | None = None
) -> None:
    """Hidden states, logits, loss and all gradients."""
    labels = labels_for(head, ids, mask)
    theirs = original(ids, attention_mask=mask, output_hidden_states=True, **labels)
    output = ours(ids, attention_mask=mask, output_hidden_states=True, **labels)
    assert_same_scores(theirs, output, mask)

    # The original returns its second stream, before and between layers and after the last.
    size = original.config.hidden_size
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    for expected, actual in zip(theirs.hidden_states[:-1], output.hidden_states[:-1], strict=True):
        torch.testing.assert_close(
            actual[..., size:][real], expected[real], rtol=0.0, atol=TOLERANCE
        )

    generator = torch.Generator().manual_seed(3)
    objectives = []
    for out in (theirs, output):
        if labels:
            objectives.append(out.loss)
        else:
            weight = torch.randn(out.last_hidden_state.shape, generator=generator)
            weight = weight if mask is None else weight * mask.unsqueeze(-1)
            objectives.append((out.last_hidden_state * weight).mean())
            generator.manual_seed(3)
    torch.testing.assert_close(objectives[1], objectives[0], rtol=0.0, atol=TOLERANCE)
    for objective in objectives:
        objective.backward()
    assert_same_gradients(original, ours)


# ---- parity in training ----

VARIANTS: dict[str, dict[str, Any]] = {
    "local": {"attn_layers": ["local", "local"]},
    "lsh": {"attn_layers": ["lsh", "lsh"]},
    "mixed": {"attn_layers": ["lsh", "local", "lsh"]},
    "learned-positions": {"axial_pos_embds": False},
    "one-round": {"num_hashes": 1},
    "four-rounds": {"num_hashes": 4},
    "two-factors": {"num_buckets": [2, 4]},
    "three-factors": {"num_buckets": [2, 2, 4]},
    "more-buckets-than-we-hash-at-once": {"num_buckets": 256},
    "buckets-from-the-length": {"num_buckets": None},
    "factors-from-the-length": {"num_buckets": None, "lsh_attn_chunk_length": 4},
    "short-lsh-chunks": {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 16},
    "short-local-chunks": {"lsh_attn_chunk_length": 32, "local_attn_chunk_length": 8},
    "two-chunks-before": {"lsh_num_chunks_before": 2, "local_num_chunks_before": 2},
    "nothing-before": {"lsh_num_chunks_before": 0, "local_num_chunks_before": 0},
    "heads-as-wide-as-the-model": {"attention_head_size": 16},
    "gelu-in-slices": {"hidden_act": "gelu", "chunk_size_feed_forward": 32},
    "one-chunk": {"lsh_attn_chunk_length": 128, "local_attn_chunk_length": 128},
}
ENCODER_VARIANTS: dict[str, dict[str, Any]] = {
    "a-chunk-after": {"lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
    "only-after": {
        "lsh_num_chunks_before": 0,
        "lsh_num_chunks_after": 1,
        "local_num_chunks_before": 0,
        "local_num_chunks_after": 2,
    },
}
CASES = [
    pytest.param(head, overrides, id=f"{head}-{name}")
    for head, variants in (
        ("causal_lm", VARIANTS),
        ("masked_lm", {**VARIANTS, **ENCODER_VARIANTS}),
    )
    for name, overrides in variants.items()
]


@pytest.mark.parametrize(("head", "overrides"), CASES)
def test_a_training_step_is_the_same(head: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    original, ours = build_pair(head, tmp_path, **overrides)
    assert_same_training_step(original, ours, head, random_ids(2, LENGTH))


@pytest.mark.parametrize("decoder", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("head", ["model", "classification", "question_answering"])
def test_a_training_step_of_other_heads_is_the_same(
    head: str, decoder: bool, tmp_path: Path
) -> None:
    labels = {} if head == "question_answering" else {"num_labels": 3}
    original, ours = build_pair(head, tmp_path, is_decoder=decoder, **labels)
    assert_same_training_step(original, ours, head, random_ids(2, LENGTH))


@pytest.mark.parametrize("buckets", [8, None], ids=["8-buckets", "buckets-from-the-length"])
@pytest.mark.parametrize("head", ["model", "causal_lm", "masked_lm", "classification"])
def test_a_training_step_with_padding_on_the_right_is_the_same(
    head: str, buckets: int | None, tmp_path: Path
) -> None:
    labels = {"num_labels": 3} if head == "classification" else {}
    original, ours = build_pair(
        head, tmp_path, num_buckets=buckets, lsh_attn_chunk_length=8, **labels
    )
    ids, mask = random_ids(3, LENGTH), right_padding(3, LENGTH)
    assert_same_training_step(original, ours, head, ids, mask)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, torch.tensor([[0.5], [-1.0]])),
        (3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
    ids=["regression", "several-labels"],
)
def test_other_kinds_of_classification_have_the_same_loss(
    num_labels: int, labels: Tensor, tmp_path: Path
) -> None:
    original, ours = build_pair("classification", tmp_path, num_labels=num_labels)
    ids = random_ids(2, LENGTH)
    theirs = original(ids, labels=labels)
    torch.testing.assert_close(ours(ids, labels=labels).loss, theirs.loss)


def test_in_double_precision_nothing_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ours are drawn in fp32 in any case; the original's in the dtype of the model.
    randn = torch.randn

    def drawn_in_fp32(*size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        numbers: Tensor = randn(*size, dtype=torch.float32, **options)
        return numbers if dtype is None else numbers.to(dtype)

    original, ours = build_pair("causal_lm", tmp_path, num_hashes=4)
    original.double()
    ours.double()
    ids = random_ids(2, LENGTH)
    monkeypatch.setattr(torch, "randn", drawn_in_fp32)
    theirs, output = original(ids).logits, ours(ids).logits
    torch.testing.assert_close(output, theirs, rtol=0.0, atol=1e-12)
    # Both form losses in fp32.
    weight = torch.linspace(-1.0, 1.0, VOCAB, dtype=torch.float64)
    for logits in (theirs, output):
        (logits.tanh() * weight).mean().backward()
    assert_same_gradients(original, ours, 1e-10)


# ---- parity at any length ----


@pytest.mark.parametrize("masked", [False, True], ids=["no-padding", "right-padding"])
@pytest.mark.parametrize("head", ["causal_lm", "masked_lm"])
@pytest.mark.parametrize(
    "lengths",
    [(16, 16), (8, 16), (16, 8), (12, 8)],
    ids="lsh{0[0]}-local{0[1]}".format,
)
def test_evaluation_is_the_same_at_any_length(
    lengths: tuple[int, int], head: str, masked: bool, tmp_path: Path
) -> None:
    # In the last case the original pads to multiples of 24.
    lsh, local = lengths
    after = 0 if head == "causal_lm" else 1
    original, ours = build_pair(
        head,
        tmp_path,
        lsh_attn_chunk_length=lsh,
        local_attn_chunk_length=local,
        lsh_num_chunks_after=after,
        local_num_chunks_after=after,
    )
    original.eval()
    ours.eval()
    for length in (1, 2, 8, 9, 16, 17, 25, 49, 100, 120):
        ids = random_ids(3, length)
        mask = right_padding(3, length) if masked else None
        with torch.no_grad():
            theirs = original(ids, attention_mask=mask)
            assert_same_scores(theirs, ours(ids, attention_mask=mask), mask)


@pytest.mark.parametrize("length", [17, 40, 100, 128])
def test_the_original_chooses_as_many_buckets_for_a_length(length: int, tmp_path: Path) -> None:
    # It writes its choice into the configuration, so every length needs a fresh model.
    original, ours = build_pair("masked_lm", tmp_path, num_buckets=None, lsh_attn_chunk_length=8)
    ids = random_ids(2, length)
    with torch.no_grad():
        assert_same_scores(original.eval()(ids), ours.eval()(ids))
    assert original.config.num_buckets is not None
    assert ours.config.num_buckets is None


def test_dense_attentions_are_those_of_the_same_function(tmp_path: Path) -> None:
    _, ours = build_pair("model", tmp_path, is_decoder=True, local_attn_chunk_length=8)
    ids = random_ids(2, 100)
    with torch.no_grad():
        expected = ours.eval()(ids).last_hidden_state
        output = ours(ids, output_attentions=True)
    assert [a.shape[2:] for a in output.attentions] == [(100, 100)] * 2
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0.0, atol=1e-5)


# ---- the published configurations ----


@PUBLISHED
def test_a_published_configuration_evaluates_the_same(
    published: dict[str, Any], tmp_path: Path
) -> None:
    original = build_original("causal_lm", {**published, **NARROW})
    ours = open_as_ours(original, "causal_lm", tmp_path).eval()
    ids = random_ids(1, 700, published["vocab_size"])
    with torch.no_grad():
        assert_same_scores(original.eval()(ids), ours(ids))


@PUBLISHED
def test_a_published_configuration_trains_the_same_at_reduced_length(
    published: dict[str, Any], tmp_path: Path
) -> None:
    fields = {**published, **NARROW, **NO_DROPOUT, "axial_pos_shape": [8, 64]}
    original = build_original("causal_lm", fields)
    ours = open_as_ours(original, "causal_lm", tmp_path)
    assert_same_training_step(
        original, ours, "causal_lm", random_ids(1, 512, published["vocab_size"])
    )


@PUBLISHED
def test_a_published_configuration_is_read_in_full(published: dict[str, Any]) -> None:
    config = reformer_hf.ReformerConfig.from_dict({**published, "model_type": "reformer"})
    changed = {"num_buckets": [512]} if published is ENWIK8 else {}
    for name, value in {**published, **changed}.items():
        assert getattr(config, name) == value, name
    assert (config.attention_pattern, config.stream_merge) == ("chunk", "concat")
    assert not config.exact_reversible
    assert not config.tie_word_embeddings


# ---- configuration ----


def test_fields_that_are_left_out_have_the_defaults_of_transformers() -> None:
    theirs = transformers.ReformerConfig()
    converted = reformer_hf.ReformerConfig(**convert_config({}))
    explicit = reformer_hf.ReformerConfig(**convert_config(theirs.to_dict()))
    assert converted.to_dict() == explicit.to_dict()
    changed = {"model_type", "transformers_version", "use_cache"}
    shared = converted.to_dict().keys() & theirs.to_dict().keys() - changed
    assert len(shared) > 30
    for name in shared:
        old, new = getattr(theirs, name), getattr(converted, name)
        assert (list(old) if isinstance(old, tuple) else old) == new, name


def test_the_longest_sequence_is_what_both_limits_of_the_original_allow() -> None:
    fields = {"max_position_embeddings": 524288, "axial_pos_shape": [64, 64]}
    assert convert_config(fields)["max_position_embeddings"] == 4096
    learned = convert_config({**fields, "axial_pos_embds": False})
    assert learned["max_position_embeddings"] == 524288
    assert learned["axial_pos_shape"] is None


def test_a_classifier_keeps_its_labels(tmp_path: Path) -> None:
    names = {0: "bad", 1: "middling", 2: "good"}
    original = build_original("classification", {**TINY, "id2label": names, "num_labels": 3})
    ours = open_as_ours(original, "classification", tmp_path)
    assert ours.config.id2label == names
    assert ours.config.num_labels == 3


def test_the_window_pattern_is_one_setting_away(tmp_path: Path) -> None:
    original = build_original("causal_lm", TINY)
    ours = open_as_ours(original, "causal_lm", tmp_path, attention_pattern="window", hash_seed=9)
    config = ours.config
    assert (config.attention_pattern, config.num_buckets, config.hash_seed) == ("window", None, 9)
    assert config.exact_reversible
    ids = random_ids(2, 77)
    ours(ids, labels=ids).loss.backward()


def test_reading_an_old_configuration_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_original("model", TINY).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = reformer_hf.ReformerConfig.from_pretrained(tmp_path)
    assert type(config) is reformer_hf.ReformerConfig
    assert config.model_type == "reformer_hf"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


# ---- weights ----


def test_shards_are_read_like_a_single_file(tmp_path: Path) -> None:
    original = build_original("causal_lm", TINY)
    whole = open_as_ours(original, "causal_lm", tmp_path / "whole")
    original.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    ours = reformer_hf.ReformerForCausalLM.from_pretrained(tmp_path / "shards")
    expected = whole.state_dict()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_convert_state_dict_gives_what_loading_gives(tmp_path: Path) -> None:
    original, ours = build_pair("classification", tmp_path, num_labels=3)
    converted = convert_state_dict(original.state_dict())
    assert converted.keys() == ours.state_dict().keys()
    for name, weight in ours.state_dict().items():
        assert torch.equal(weight, converted[name]), name


def test_a_head_opens_a_bare_model_and_the_other_way_round(tmp_path: Path) -> None:
    ids = random_ids(2, 40)
    bare = build_original("model", {**TINY, "is_decoder": True})
    bare.save_pretrained(tmp_path / "bare")
    model, info = reformer_hf.ReformerForCausalLM.from_pretrained(
        tmp_path / "bare", output_loading_info=True
    )
    assert info["missing_keys"] == {"lm_head.weight", "lm_head.bias"}
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert_same_scores(bare.eval()(ids), model.reformer.eval()(ids))

    build_original("causal_lm", TINY).save_pretrained(tmp_path / "lm")
    _, info = reformer_hf.ReformerModel.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not info["missing_keys"]
    assert info["unexpected_keys"] == {"lm_head.weight", "lm_head.bias"}


def test_missing_and_unexpected_weights_are_reported_under_our_names(tmp_path: Path) -> None:
    build_original("causal_lm", TINY).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("reformer.encoder.layers.1.attention.self_attention.query_key.weight")
    weights["reformer.encoder.layers.7.feed_forward.dense.dense.bias"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    _, info = reformer_hf.ReformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"reformer.stack.layers.1.attention.query_key.weight"}
    assert info["unexpected_keys"] == {"reformer.stack.layers.7.feed_forward.inner.bias"}


def test_what_old_versions_saved_besides_is_ignored(tmp_path: Path) -> None:
    # Constants of the attention masks, and the bias of the head under its two names.
    original = build_original("causal_lm", TINY)
    original.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    bias = torch.linspace(-1.0, 1.0, VOCAB)
    weights["lm_head.bias"], weights["lm_head.decoder.bias"] = bias, bias.clone()
    layer = "reformer.encoder.layers.{}.attention.self_attention.{}"
    for index, name in ((1, "self_mask_value_float16"), (0, "mask_value_float32")):
        weights[layer.format(index, name)] = torch.tensor(-1e3)
    save_file(weights, file, metadata={"format": "pt"})
    model, info = reformer_hf.ReformerForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(model.lm_head.bias, bias)
    assert convert_state_dict(weights).keys() == model.state_dict().keys()


def test_saving_writes_our_names_whatever_was_read(tmp_path: Path) -> None:
    original, ours = build_pair("causal_lm", tmp_path / "old")
    ours.save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert saved.keys() == ours.state_dict().keys()
    again, info = reformer_hf.ReformerForCausalLM.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = random_ids(2, LENGTH)
    with torch.no_grad():
        assert_same_scores(original.eval()(ids), again.eval()(ids))

    fresh = reformer_hf.ReformerForCausalLM(ours.config)
    fresh.save_pretrained(tmp_path / "fresh")
    assert load_file(tmp_path / "fresh" / "model.safetensors").keys() == saved.keys()


def test_old_weights_open_in_another_dtype(tmp_path: Path) -> None:
    build_original("causal_lm", TINY).save_pretrained(tmp_path)
    model = reformer_hf.ReformerForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(random_ids(2, 40)).logits.isfinite().all()


# ---- Auto classes ----


@pytest.fixture
def built_in_afterwards() -> Iterator[None]:
    yield
    reformer_hf.register()


@pytest.mark.usefixtures("built_in_afterwards")
@pytest.mark.parametrize(
    ("auto_class", "head"),
    [
        ("AutoModel", "model"),
        ("AutoModelForTextEncoding", "model"),
        ("AutoModelForCausalLM", "causal_lm"),
        ("AutoModelForMaskedLM", "masked_lm"),
        ("AutoModelForSequenceClassification", "classification"),
        ("AutoModelForQuestionAnswering", "question_answering"),
    ],
)
def test_auto_classes_open_old_checkpoints_as_ours_only_when_asked(
    auto_class: str, head: str, tmp_path: Path
) -> None:
    original = build_original(head, TINY)
    original.save_pretrained(tmp_path)
    auto = getattr(transformers, auto_class)
    theirs, ours = (
        getattr(package, name)
        for package, name in zip((transformers, reformer_hf), CLASSES[head], strict=True)
    )
    ids = random_ids(2, LENGTH)
    for replace in (False, True, True, False, True, False):
        reformer_hf.register(replace_builtin=replace)
        model = auto.from_pretrained(tmp_path)
        assert type(model) is (ours if replace else theirs)
        with torch.no_grad():
            assert_same_scores(original.eval()(ids), model.eval()(ids))


@pytest.mark.usefixtures("built_in_afterwards")
def test_auto_config_takes_settings_for_the_conversion(tmp_path: Path) -> None:
    build_original("model", TINY).save_pretrained(tmp_path)
    reformer_hf.register(replace_builtin=True)
    config = transformers.AutoConfig.from_pretrained(tmp_path, attention_pattern="window")
    assert type(config) is reformer_hf.ReformerConfig
    assert (config.attention_pattern, config.num_buckets) == ("window", None)


# ---- where the original is wrong ----


def test_the_original_looks_ahead_and_the_window_pattern_does_not(tmp_path: Path) -> None:
    original = build_original("causal_lm", TINY).eval()
    chunk = open_as_ours(original, "causal_lm", tmp_path).eval()
    window = open_as_ours(original, "causal_lm", tmp_path, attention_pattern="window").eval()
    ids = random_ids(2, LENGTH)
    edited = torch.cat((ids[:, :100], ids[:, 100:].flip(1)), dim=1)
    moved = []
    with torch.no_grad():
        for model in (original, chunk, window):
            change = model(ids).logits[:, :100] - model(edited).logits[:, :100]
            moved.append(float(change.abs().max()))
    assert moved[0] > 1e-2
    assert moved[1] > 1e-2
    assert moved[2] <= 1e-5


def test_left_padding_moves_the_original_and_not_the_window_pattern(tmp_path: Path) -> None:
    original = build_original("causal_lm", TINY).eval()
    window = open_as_ours(original, "causal_lm", tmp_path, attention_pattern="window").eval()
    ids, extra = random_ids(2, 64), 32
    padded = torch.nn.functional.pad(ids, (extra, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (extra, 0))
    moved = []
    with torch.no_grad():
        for model in (original, window):
            logits = model(padded, attention_mask=mask).logits[:, extra:]
            moved.append(float((model(ids).logits - logits).abs().max()))
    assert moved[0] > 1e-1
    assert moved[1] <= 1e-5


def test_the_bias_of_the_head_is_added_as_in_training(tmp_path: Path) -> None:
    original = build_original("causal_lm", TINY).eval()
    original.lm_head.bias.data.normal_()
    ours = open_as_ours(original, "causal_lm", tmp_path).eval()
    ids = random_ids(2, LENGTH)
    with torch.no_grad():
        difference = ours(ids).logits - original(ids).logits
    expected = original.lm_head.bias.detach().expand_as(difference)
    torch.testing.assert_close(difference, expected, rtol=0.0, atol=TOLERANCE)


def test_old_names_are_known_while_weights_are_loaded_and_never_else() -> None:
    model = reformer_hf.ReformerForCausalLM(reformer_hf.ReformerConfig(vocab_size=VOCAB))

    def known() -> int:
        return len(get_model_conversion_mapping(model, add_legacy=False))

    assert known() == 0
    with original_names_known():
        assert known() > 0
        with original_names_known():
            pass
        assert known() > 0  # another thread was done first
    assert known() == 0
