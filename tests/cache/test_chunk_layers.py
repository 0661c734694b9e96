"""The cache of the ``chunk`` pattern decodes as transformers' Reformer does: approximately."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from reformer_hf import ReformerCache, ReformerConfig, ReformerForCausalLM

CHUNK = 8
FIELDS = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "attention_head_size": 12,
    "feed_forward_size": 40,
    "axial_pos_shape": [8, 16],
    "axial_pos_embds_dim": [8, 24],
    "max_position_embeddings": 128,
    "lsh_attn_chunk_length": CHUNK,
    "local_attn_chunk_length": CHUNK,
    "num_buckets": 6,
    "hash_seed": 3,
    "is_decoder": True,
    "hidden_dropout_prob": 0.0,
}
LAYERS = {"lsh": ["lsh"], "local": ["local"], "mixed": ["local", "lsh", "local", "lsh"]}


def models(tmp_path: Path, **changes: object) -> tuple[torch.nn.Module, ReformerForCausalLM]:
    """A model of transformers with random weights, and ours from its checkpoint."""
    torch.manual_seed(0)
    original = transformers.ReformerModelWithLMHead(
        transformers.ReformerConfig(**{**FIELDS, **changes})
    ).eval()
    for parameter in original.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    original.save_pretrained(tmp_path)
    return original, ReformerForCausalLM.from_pretrained(tmp_path).eval()


@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
# Shorter than a chunk, a chunk, not a multiple of it, more than a ring of neighbours.
@pytest.mark.parametrize("prompt", [3, CHUNK, 21, 48])
def test_every_step_equals_that_of_transformers(
    prompt: int, layers: list[str], before: int, rounds: int, tmp_path: Path
) -> None:
    original, ours = models(
        tmp_path,
        attn_layers=layers,
        num_hashes=rounds,
        # Not for local layers: with two chunks the original forgets tokens of the first ones, a
        # slice from a negative number on.
        lsh_num_chunks_before=before,
    )
    ids = torch.randint(3, 40, (1, prompt + 20))
    cache = ReformerCache(ours.config, approximate=True)
    theirs = original(ids[:, :prompt], use_cache=True)
    got = ours(ids[:, :prompt], past_key_values=cache)
    for step in range(prompt, prompt + 20):
        torch.testing.assert_close(got.logits[:, -1], theirs.logits[:, -1], atol=1e-4, rtol=1e-4)
        token = ids[:, step : step + 1]
        theirs = original(token, past_buckets_states=theirs.past_buckets_states, use_cache=True)
        got = ours(token, past_key_values=cache)


@pytest.fixture
def model() -> ReformerForCausalLM:
    """A small model in the chunk pattern."""
    torch.manual_seed(1)
    config = ReformerConfig(
        vocab_size=40,
        hidden_size=32,
        num_attention_heads=2,
        attention_head_size=16,
        attn_layers=["local", "lsh", "full"],
        attention_pattern="chunk",
        lsh_attn_chunk_length=CHUNK,
        local_attn_chunk_length=2 * CHUNK,
        num_hashes=2,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=None,
    )
    return ReformerForCausalLM(config).eval()


@torch.no_grad()
def test_steps_are_near_a_pass_over_everything_but_not_equal(model: ReformerForCausalLM) -> None:
    ids = torch.randint(3, 40, (2, 60))
    cache = ReformerCache(model.config, approximate=True)
    steps = [model(ids[:, :30], past_key_values=cache).logits]
    steps += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(30, 60)]
    logits, whole = torch.cat(steps, dim=1), model(ids).logits
    torch.testing.assert_close(logits[:, :29], model(ids[:, :30]).logits[:, :29])
    assert not torch.allclose(logits[:, 30:], whole[:, 30:], atol=1e-4)
    spread = whole[:, 30:].std()
    assert (logits[:, 30:] - whole[:, 30:]).abs().mean() < 0.5 * spread


@torch.no_grad()
def test_generate_takes_it_when_it_is_given(model: ReformerForCausalLM) -> None:
    ids = torch.randint(3, 40, (2, 20))
    options = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True}
    cache = ReformerCache(model.config, approximate=True)
    out = model.generate(ids, past_key_values=cache, **options)
    assert out.past_key_values is cache
    assert cache.get_seq_length() == 31
    again = ReformerCache(model.config, approximate=True)
    logits = [model(ids, past_key_values=again).logits[:, -1]]
    for step in range(20, 31):
        token = out.sequences[:, step : step + 1]
        logits.append(model(token, past_key_values=again).logits[:, -1])
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(logits))


@torch.no_grad()
def test_several_tokens_at_once_are_read_one_after_the_other(model: ReformerForCausalLM) -> None:
    ids = torch.randint(3, 40, (2, 40))
    one, many = (ReformerCache(model.config, approximate=True) for _ in range(2))
    for cache in (one, many):
        model(ids[:, :20], past_key_values=cache)
    steps = [model(ids[:, i : i + 1], past_key_values=one).logits for i in range(20, 40)]
    together = model(ids[:, 20:], past_key_values=many).logits
    torch.testing.assert_close(together, torch.cat(steps, dim=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rows_can_change_places_and_tokens_be_taken_back(model: ReformerForCausalLM) -> None:
    ids = torch.randint(3, 40, (2, 30))
    swapped, plain = (ReformerCache(model.config, approximate=True) for _ in range(2))
    model(ids[:, :20], past_key_values=swapped)
    model(ids.flip(0)[:, :20], past_key_values=plain)
    swapped.reorder_cache(torch.tensor([1, 0]))
    token = ids[:, 20:21]
    expected = model(token, past_key_values=plain).logits
    torch.testing.assert_close(model(token, past_key_values=swapped).logits, expected)
    swapped.crop(-1)
    torch.testing.assert_close(model(token, past_key_values=swapped).logits, expected)


def test_what_it_cannot_do_is_said(model: ReformerForCausalLM) -> None:
    with pytest.raises(ValueError, match="approximate=True decodes as transformers"):
        ReformerCache(model.config)
    with pytest.raises(ValueError, match="`approximate` must be False in the 'window' pattern"):
        ReformerCache(ReformerConfig(), approximate=True)
    with pytest.raises(ValueError, match="`max_tokens` must be None for an approximate cache"):
        ReformerCache(model.config, max_tokens=5, approximate=True)
    ids, mask = torch.randint(3, 40, (2, 10)), torch.ones(2, 10, dtype=torch.int64)
    mask[0, :4] = 0
    with pytest.raises(ValueError, match=r"`attention_mask` must be full .* 6 real tokens of 10"):
        model(ids, mask, past_key_values=ReformerCache(model.config, approximate=True))
