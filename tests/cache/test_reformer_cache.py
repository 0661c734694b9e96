"""What a cache is, as users and `generate()` see it: lengths, copies of rows, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache

from reformer_hf import (
    ReformerCache,
    ReformerConfig,
    ReformerEncoderDecoderCache,
    ReformerPreTrainedModel,
)
from reformer_hf.layers.context import ForwardContext
from tests.models.builders import HEAD_OF, random_ids

LAYERS = ["full", "lsh", "local"]


def built(**options: Any) -> ReformerPreTrainedModel:
    return HEAD_OF["causal_lm"].build(**{"attn_layers": LAYERS, **options}).eval()


def filled(
    model: ReformerPreTrainedModel, ids: Tensor, **options: Any
) -> tuple[ReformerCache, Tensor]:
    cache = ReformerCache(model.config, **options)
    return cache, model(ids, past_key_values=cache).logits


# ---- what it holds ----


def test_layers_are_registered_by_their_type() -> None:
    layers = ReformerCache(built().config).layers
    for kind, layer in zip(LAYERS, layers, strict=True):
        assert DYNAMIC_LAYER_TYPE_MAPPING[f"reformer_{kind}"] is type(layer)


@torch.no_grad()
def test_lengths_count_columns() -> None:
    model = built()
    cache = ReformerCache(model.config)
    assert (cache.get_seq_length(), cache.batch_size, cache.get_max_length()) == (0, -1, -1)
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    model(random_ids(2, 9, seed=1), attention_mask=mask, past_key_values=cache)
    assert (cache.get_seq_length(), cache.batch_size) == (9, 2)
    assert cache.get_mask_sizes(3, 1) == (12, 0)
    assert cache.timeline.ends == (9, 5)
    assert not cache.is_compileable
    assert cache.is_croppable


@torch.no_grad()
def test_a_plain_call_returns_no_cache_and_one_that_asks_does() -> None:
    model, ids = built(), random_ids(1, 20, seed=1)
    assert model(ids).past_key_values is None
    out = model(ids, use_cache=True)
    assert isinstance(out.past_key_values, ReformerCache)
    assert out.past_key_values.get_seq_length() == 20
    assert torch.equal(out.logits, model(ids).logits)


@torch.no_grad()
def test_a_local_layer_keeps_its_window_only() -> None:
    model = built(attn_layers=["local"])
    cache, _ = filled(model, random_ids(1, 100, seed=1))
    before = cache.nbytes()
    model(random_ids(1, 200, seed=2), past_key_values=cache)
    assert cache.nbytes() == before


@torch.no_grad()
@pytest.mark.parametrize("planned", [None, 6000])
def test_a_token_takes_little_more_than_its_keys_and_values(planned: int | None) -> None:
    options = {"lsh_attn_chunk_length": 64, "attention_head_size": 64, "attn_layers": ["lsh"]}
    model = built(**options, max_position_embeddings=8192)
    cache, _ = filled(model, random_ids(1, 6000, seed=1), planned_lengths=planned)
    keys_and_values = 6000 * 2 * 2 * 64 * 4
    assert cache.nbytes() <= (1.25 if planned is None else 1.05) * keys_and_values


@torch.no_grad()
def test_buffers_are_copied_a_bounded_number_of_times_while_they_grow() -> None:
    model = built(attn_layers=["lsh"])
    cache, _ = filled(model, random_ids(1, 100, seed=1), planned_lengths=4000)
    places = set()
    for _ in range(40):
        model(random_ids(1, 10, seed=2), past_key_values=cache)
        places.add(cache.layers[0].keys.data_ptr())
    assert len(places) < 10


@torch.no_grad()
def test_rotations_and_buckets_stay_what_they_were() -> None:
    model, ids = built(), random_ids(1, 20, seed=1)
    cache, _ = filled(model, ids, planned_lengths=90)
    hasher = cache.lsh_layer(1).hasher
    drawn = dict(hasher._projections)
    assert drawn
    for seed in range(3):
        model(random_ids(1, 30, seed=seed), past_key_values=cache)
    assert cache.lsh_layer(1).hasher is hasher
    assert hasher._projections == drawn
    assert all(hasher._projections[factors] is drawn[factors] for factors in drawn)


# ---- tokens that are written, addressed, masked and deleted ----


@torch.no_grad()
def test_what_was_written_is_found_by_its_hash() -> None:
    """A later token with the direction of an earlier one reads that one's value."""
    model = built(attn_layers=["lsh"], num_buckets=16, num_hashes=4)
    layer, cache = model.reformer.stack.layers[0], ReformerCache(model.config)
    context = ForwardContext(None, hash_seed=3, dropout_seed=0, cache=cache)
    generator = torch.Generator().manual_seed(0)
    query_key = 8.0 * normalize(torch.randn(1, 2, 300, 16, generator=generator), dim=-1)
    value = torch.randn(1, 2, 300, 16, generator=generator)

    def step(qk: Tensor, v: Tensor) -> Tensor:
        cache.open(1, qk.shape[2], None, qk.device, 3, None)
        out = layer.attention.attend_with_cache(cache, context, qk, v)
        cache.close()
        return out

    step(query_key, value)
    asked = 3.0 * query_key[:, :, 280:281]
    found = step(asked, torch.zeros(1, 2, 1, 16))
    assert (found - value[:, :, 280:281]).abs().max() < 0.05
    # Deleted, it is not found any more, and neither is any other.
    cache.evict(0)
    own = torch.randn(1, 2, 1, 16)
    torch.testing.assert_close(step(asked, own), own)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[40], [13, 1, 26], [1] * 8 + [32]])
def test_nothing_that_comes_later_changes_what_was_said(lengths: list[int]) -> None:
    model, ids = built(), random_ids(1, 40, seed=1)
    changed = ids.clone()
    changed[:, 30:] = random_ids(1, 10, seed=2)
    said = []
    for text in (ids, changed):
        cache = ReformerCache(model.config, planned_lengths=40)
        parts = [model(x, past_key_values=cache).logits for x in text.split(lengths, dim=1)]
        said.append(torch.cat(parts, dim=1)[:, :30])
    assert (said[0] - said[1]).abs().max() <= 1e-5


@torch.no_grad()
def test_a_maximum_of_tokens_bounds_the_memory() -> None:
    model = built()
    cache, _ = filled(model, random_ids(1, 100, seed=1), max_tokens=50)
    before = cache.nbytes()
    for seed in range(10):
        model(random_ids(1, 60, seed=seed), past_key_values=cache)
    assert cache.nbytes() == before
    assert cache.get_seq_length() == 700
    assert cache.timeline.firsts == (650,)


# ---- rows, rollback, reset ----


@torch.no_grad()
def test_rows_can_be_repeated_and_selected() -> None:
    model, ids = built(), random_ids(3, 25, seed=1)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    options = {"planned_lengths": [40, 30, 20]}
    cache = ReformerCache(model.config, **options)
    model(ids, attention_mask=mask, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([5, 2, 3]))
    new = random_ids(3, 4, seed=2)
    got = model(new, past_key_values=cache).logits
    for row, source in enumerate([2, 1, 1]):
        alone = ReformerCache(model.config, planned_lengths=options["planned_lengths"][source])
        text = ids[source : source + 1, 6 * (source == 1) :]
        model(text, past_key_values=alone)
        expected = model(new[row : row + 1], past_key_values=alone).logits
        torch.testing.assert_close(got[row : row + 1], expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("recorded", [False, True])
def test_a_rollback_leaves_no_trace(recorded: bool) -> None:
    model, ids = built(), random_ids(2, 60, seed=1)
    cache, _ = filled(model, ids, planned_lengths=90)
    if recorded:
        cache.activate_past_recording()
    for length in (1, 1, 20, 1):
        model(random_ids(2, length, seed=3), past_key_values=cache)
    cache.crop(-23)
    assert cache.get_seq_length() == 60
    fresh, _ = filled(model, ids, planned_lengths=90)
    for length in (1, 9, 1):
        new = random_ids(2, length, seed=4)
        after = model(new, past_key_values=cache).logits
        expected = model(new, past_key_values=fresh).logits
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_reset_cache_is_as_good_as_new() -> None:
    model = built()
    cache, _ = filled(model, random_ids(2, 60, seed=1))
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.nbytes()) == (0, -1, 0)
    ids = random_ids(3, 17, seed=2)
    assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


@torch.no_grad()
def test_layers_come_back_from_where_they_were_offloaded_to() -> None:
    model, ids, new = built(), random_ids(1, 30, seed=1), random_ids(1, 1, seed=2)
    cache, _ = filled(model, ids)
    other, _ = filled(model, ids)
    for index in range(len(LAYERS)):
        cache.offload(index, only_non_sliding=False)
    assert torch.equal(
        model(new, past_key_values=cache).logits, model(new, past_key_values=other).logits
    )


@torch.no_grad()
def test_a_call_that_failed_half_way_does_not_stay_in_an_empty_cache() -> None:
    model, ids = built(), random_ids(1, 30, seed=1)
    cache = ReformerCache(model.config)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.reformer.stack.layers[2].attention.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids, past_key_values=cache)
    hook.remove()
    assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


def test_gradients_end_at_the_cache() -> None:
    model, ids = built(), random_ids(1, 30, seed=1)
    cache = ReformerCache(model.config, planned_lengths=30)
    model(ids[:, :20], past_key_values=cache)
    model(ids[:, 20:], past_key_values=cache, labels=ids[:, 20:]).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(layer.keys.requires_grad for layer in cache.layers)


# ---- refusals ----


def wrong_batch(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model(random_ids(3, 1, seed=1), past_key_values=cache)


def wrong_dtype(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model.to(torch.bfloat16)(random_ids(2, 1, seed=1), past_key_values=cache)


def wrong_model(model: ReformerPreTrainedModel, cache: Cache) -> None:
    built(num_attention_heads=1)(random_ids(2, 1, seed=1), past_key_values=cache)


def wrong_rounds(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model(random_ids(2, 1, seed=1), past_key_values=cache, num_hashes=5)


def wrong_mask(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model(random_ids(2, 1, seed=1), attention_mask=torch.ones(2, 7), past_key_values=cache)


def too_long(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model(random_ids(2, 80, seed=1), past_key_values=cache)


def weights_of_the_past(model: ReformerPreTrainedModel, cache: Cache) -> None:
    model(random_ids(2, 1, seed=1), past_key_values=cache, output_attentions=True)


def crop_beyond(model: ReformerPreTrainedModel, cache: Cache) -> None:
    cache.crop(-31)


def crop_to_a_length(model: ReformerPreTrainedModel, cache: Cache) -> None:
    cache.crop(10)


def update_from_outside(model: ReformerPreTrainedModel, cache: Cache) -> None:
    keys = torch.zeros(2, 2, 1, 16)
    cache.update(keys, keys, 1)


def evict_less_than_nothing(model: ReformerPreTrainedModel, cache: ReformerCache) -> None:
    cache.evict(-1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (wrong_batch, r"batch of 2 rows, got inputs of 3"),
        (wrong_dtype, r"holds torch.float32, got keys of dtype torch.bfloat16"),
        (wrong_model, r"num_attention_heads=2, got one with 1"),
        (wrong_rounds, r"`num_hashes` must stay 2 .* got 5"),
        (
            wrong_mask,
            r"must be .* \[2, 31\] with the tokens in the cache, or \[2, 1\] .* got \[2, 7\]",
        ),
        (too_long, r"max_position_embeddings=100 tokens, got 110 with 30 in `past_key_values`"),
        (weights_of_the_past, r"whole sequence, got `past_key_values` with 30 tokens"),
        (crop_beyond, r"at most the 30 tokens in the cache, got 31"),
        (crop_to_a_length, r"zero or negative, got 10"),
        (update_from_outside, r"a LSHCacheLayer attends to its own tokens"),
        (evict_less_than_nothing, r"`keep` must not be negative, got -1"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(mistake: Any, message: str) -> None:
    model = built(max_position_embeddings=100)
    cache, _ = filled(model, random_ids(2, 30, seed=1))
    with pytest.raises(ValueError, match=message):
        mistake(model, cache)


@torch.no_grad()
def test_a_cache_on_another_device_is_refused() -> None:
    cache, _ = filled(built(), random_ids(2, 30, seed=1))
    with pytest.raises(ValueError, match="is on cpu, got inputs on meta"):
        cache.open(2, 1, None, torch.device("meta"), 1, None)


@torch.no_grad()
def test_a_local_layer_says_how_far_it_can_be_cropped() -> None:
    cache, _ = filled(built(attn_layers=["local"]), random_ids(1, 100, seed=1))
    with pytest.raises(ValueError, match=r"can take back 32 tokens .* window of 8, got 60"):
        cache.crop(-60)
    assert cache.get_seq_length() == 100


@pytest.mark.parametrize("kind", [DynamicCache, dict])
def test_other_caches_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"must be a ReformerCache, got a {kind.__name__}"):
        built()(random_ids(1, 3, seed=1), past_key_values=kind())
    model = HEAD_OF["seq2seq_lm"].build()
    ids = random_ids(1, 3, seed=1)
    with pytest.raises(ValueError, match=f"ReformerEncoderDecoderCache, got a {kind.__name__}"):
        model(ids, decoder_input_ids=ids, past_key_values=kind())
    pair = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(ValueError, match="must be a ReformerCache, got a DynamicCache"):
        model(ids, decoder_input_ids=ids, past_key_values=pair)


def test_a_model_that_reads_both_sides_has_no_cache() -> None:
    model, ids = HEAD_OF["model"].build(), random_ids(1, 9, seed=1)
    assert model(ids, use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="needs a causal model, got is_decoder=False"):
        model(ids, past_key_values=ReformerCache(model.config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planned_lengths": 0}, "`planned_lengths` must be positive, got 0"),
        ({"planned_lengths": []}, "`planned_lengths` must be positive"),
        ({"max_tokens": 0}, "`max_tokens` must be positive, got 0"),
    ],
)
def test_impossible_caches_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReformerCache(built().config, **options)


def test_hybrid_layers_need_the_first_tokens_forever() -> None:
    config = ReformerConfig(attn_layers=["hybrid", "lsh"])
    with pytest.raises(ValueError, match="`max_tokens` must not be used with 'hybrid' layers"):
        ReformerCache(config, max_tokens=50)
    with pytest.raises(ValueError, match="`keep` must not be used with 'hybrid' layers"):
        ReformerCache(config).evict(50)


def test_a_cache_needs_a_configuration_and_the_window_pattern() -> None:
    with pytest.raises(ValueError, match="must be a ReformerConfig, got a str"):
        ReformerCache("reformer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be 'window' for an exact cache"):
        ReformerCache(ReformerConfig(attention_pattern="chunk"))


@torch.no_grad()
@pytest.mark.parametrize("planned", [[9], [9, 0]])
def test_a_plan_names_every_row(planned: list[int]) -> None:
    with pytest.raises(ValueError, match=r"`planned_lengths` must (hold|be)"):
        built()(random_ids(2, 5, seed=1), planned_lengths=planned)
    with pytest.raises(ValueError, match=r"`planned_lengths` must (hold|be)"):
        built()(random_ids(2, 5, seed=1), planned_lengths=planned, use_cache=True)


@torch.no_grad()
def test_seq2seq_caches_hold_the_source_once() -> None:
    model = HEAD_OF["seq2seq_lm"].build().eval()
    source, target = random_ids(2, 33, seed=1), random_ids(2, 12, seed=2)
    cache = ReformerEncoderDecoderCache(model.config, planned_lengths=12)
    whole = model(source, decoder_input_ids=target, planned_lengths=12).logits
    encoded = model.get_encoder()(source)
    parts = [
        model(encoder_outputs=encoded, decoder_input_ids=x, past_key_values=cache).logits
        for x in target.split([5, 1, 6], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)
    assert cache.batch_size == 2
    assert cache.cross_attention_cache.get_seq_length() == 33
    assert cache.get_seq_length() == 12
    cache.crop(-1)
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.batch_size == 1
    assert cache.get_seq_length() == 11
