"""Whatever the configuration and the length: it works, or it is refused with a ValueError."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from reformer_hf import ReformerPreTrainedModel
from reformer_hf.choices import ATTENTION_KINDS
from tests.models.builders import HEADS, NUM_LABELS, VOCAB, Batch, Head, train_step

# Some of the values are impossible, alone or together.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.sampled_from([VOCAB, VOCAB, 1, 0]),
    "pad_token_id": st.sampled_from([0, None, VOCAB - 1, VOCAB]),
    "eos_token_id": st.sampled_from([1, None, [1, 2], -1]),
    "hidden_act": st.sampled_from(["gelu", "relu", "silu", "sine"]),
    "layer_norm_eps": st.sampled_from([1e-12, 1e-6, 0.0]),
    "initializer_range": st.sampled_from([0.0, 0.02, 1.0]),
    "residual_grid": st.sampled_from([2.0**-20, 2.0**-24, 2.0**-8, 0.3]),
    "is_decoder": st.booleans(),
    "num_labels": st.sampled_from([NUM_LABELS, NUM_LABELS + 2]),
    "hidden_size": st.sampled_from([1, 2, 3, 16, 30]),
    "num_attention_heads": st.sampled_from([1, 2, 3, 5]),
    "attention_head_size": st.sampled_from([1, 4, 7, 16]),
    "feed_forward_size": st.sampled_from([1, 5, 32]),
    "attn_layers": st.lists(st.sampled_from(ATTENTION_KINDS), min_size=0, max_size=4),
    "max_position_embeddings": st.sampled_from([1, 5, 64, 100, 1000]),
    "axial_pos_embds": st.booleans(),
    "axial_pos_shape": st.sampled_from([None, [4, 16], [100], [5, 5, 5], [1000, 1]]),
    "axial_pos_embds_dim": st.sampled_from([None, [4, 12], [16], [10, 10, 10]]),
    "num_hashes": st.sampled_from([0, 1, 2, 3, 5]),
    "num_buckets": st.sampled_from([None, 1, 2, 6, 7, 64, 256, [2, 4], [1, 2], [3, 2], [2, 2, 2]]),
    "hash_family": st.sampled_from(["angular", "euclidean", "random"]),
    "hash_bucket_width": st.sampled_from([0.0, 0.1, 1.0]),
    "hash_seed": st.sampled_from([None, 0, 7]),
    "attention_pattern": st.sampled_from(["window", "chunk"]),
    "lsh_attn_chunk_length": st.sampled_from([1, 3, 8, 64]),
    "local_attn_chunk_length": st.sampled_from([1, 3, 8, 64]),
    "lsh_num_chunks_before": st.sampled_from([0, 1, 2]),
    "local_num_chunks_before": st.sampled_from([0, 1, 2]),
    "lsh_num_chunks_after": st.sampled_from([None, 0, 1, 2]),
    "local_num_chunks_after": st.sampled_from([None, 0, 1]),
    "count_duplicates": st.booleans(),
    "attention_backend": st.sampled_from(["auto", "torch", "reference"]),
    "head_merge": st.sampled_from(["concat", "average"]),
    "reversible": st.booleans(),
    "exact_reversible": st.booleans(),
    "stream_merge": st.sampled_from(["mean", "concat"]),
    "chunk_size_feed_forward": st.sampled_from([0, 1, 7, 64]),
    "chunk_size_lm_head": st.sampled_from([0, 1, 7]),
    "hidden_dropout_prob": st.sampled_from([0.0, 0.3]),
    "lsh_attention_probs_dropout_prob": st.sampled_from([0.0, 0.3]),
    "local_attention_probs_dropout_prob": st.sampled_from([0.0, 0.3]),
    "full_attention_probs_dropout_prob": st.sampled_from([0.0, 0.3]),
    "hybrid_attention_probs_dropout_prob": st.sampled_from([0.0, 0.3]),
    "sink_tokens": st.sampled_from([0, 1, 4, 100]),
    "tie_word_embeddings": st.booleans(),
    "classifier_pooling": st.sampled_from(["mean", "first"]),
}
DECODER_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.sampled_from([VOCAB, VOCAB, 1, 0]),
    "pad_token_id": st.sampled_from([0, None, VOCAB - 1, VOCAB]),
    "eos_token_id": st.sampled_from([1, None, [1, 2], -1]),
    "hidden_act": st.sampled_from(["gelu", "relu", "silu", "sine"]),
    "layer_norm_eps": st.sampled_from([1e-12, 1e-6, 0.0]),
    "initializer_range": st.sampled_from([0.0, 0.02, 1.0]),
    "residual_grid": st.sampled_from([2.0**-20, 2.0**-24, 2.0**-8, 0.3]),
    "is_decoder": st.booleans(),
    "num_labels": st.sampled_from([NUM_LABELS, NUM_LABELS + 2]),
    "decoder_attn_layers": FIELDS["attn_layers"],
    "max_target_positions": st.sampled_from([1, 20, 100]),
    "decoder_axial_pos_shape": st.sampled_from([None, [4, 5], [10, 10], [20]]),
    "decoder_feed_forward_size": st.sampled_from([None, 5]),
    "cross_attention_probs_dropout_prob": st.sampled_from([0.0, 0.3]),
}
LENGTHS = st.one_of(st.integers(1, 70), st.sampled_from([100, 101, 200, 333]))


def padding_of(length: int, kind: str) -> torch.Tensor | None:
    mask = torch.ones(2, length)
    if kind == "right":
        mask[1, length // 2 :] = 0
    elif kind == "left":
        mask[1, : length // 2] = 0
    elif kind == "whole row":
        mask[1] = 0
    return None if kind == "none" else mask


def works_or_is_refused(data: st.DataObject) -> bool:
    """Whether the drawn configuration was accepted; then everything about it has worked."""
    head: Head = data.draw(st.sampled_from(HEADS), label="head")
    choices = {**FIELDS, **(DECODER_FIELDS if head.seq2seq else {})}
    changed = data.draw(st.sets(st.sampled_from(sorted(choices)), max_size=12), label="changed")
    fields = {name: data.draw(choices[name], label=name) for name in sorted(changed)}
    length = data.draw(LENGTHS, label="length")
    mask = padding_of(length, data.draw(st.sampled_from(["none", "right", "left", "whole row"])))
    refusal = ""
    try:
        config = head.config(**fields)
        torch.manual_seed(0)
        model = head.model_class(config)
        batch = head.batch(2, length)
        if mask is not None:
            batch["attention_mask"] = mask
        loss, gradients = train_step(head, model, batch)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        note(f"refused: {refusal}")
        assert "`" in refusal or "max_" in refusal, "it names no field"
        return False
    assert torch.isfinite(loss)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(head.scores(model(**batch))).all()
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.to_json_string() == config.to_json_string()
    comes_back(head, model, batch, data.draw(st.sampled_from(["1KB", "5GB"]), label="shards"))
    return True


def comes_back(head: Head, model: ReformerPreTrainedModel, batch: Batch, shards: str) -> None:
    """Saved and loaded, it has the same weights and computes the same, bit for bit."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=shards)
        loaded, info = head.model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], x) for name, x in model.state_dict().items())
    saved, read = ({**m.config.to_dict(), "_name_or_path": ""} for m in (model, loaded))
    assert read == saved
    # Out of the file, whose tensors begin anywhere: sums of unaligned numbers round differently.
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**batch)), head.scores(model(**batch)))


QUIET = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@QUIET
@given(st.data())
def test_a_random_configuration_works_or_is_refused(data: st.DataObject) -> None:
    works_or_is_refused(data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(QUIET, max_examples=500, derandomize=False)
@given(st.data())
def test_many_random_configurations_work_or_are_refused(data: st.DataObject) -> None:
    works_or_is_refused(data)
