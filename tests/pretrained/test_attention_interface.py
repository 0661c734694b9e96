"""``attn_implementation="reformer"`` in models of transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartForConditionalGeneration,
    BertForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
)

import reformer_hf
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from reformer_hf.pretrained import attention_interface
from reformer_hf.pretrained.attention_interface import reformer_attention
from tests.pretrained.conftest import WINDOW, tiny_llama, token_ids

LENGTH = 150


def logits(model: PreTrainedModel, implementation: str, **given) -> Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**given).logits


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[HybridWindow]:
    """The windows of all sparse calls."""
    seen: list[HybridWindow] = []

    def counted(query, key, value, window, **rest):
        seen.append(window)
        return hybrid_attention(query, key, value, window, **rest)

    monkeypatch.setattr(attention_interface, "hybrid_attention", counted)
    return seen


def padding(side: str | None, length: int) -> dict[str, Tensor]:
    if side is None:
        return {}
    mask = torch.ones(2, length, dtype=torch.long)
    if side == "left":
        mask[0, :5] = 0
    else:
        mask[0, -5:] = 0
    return {"attention_mask": mask}


def real_part(x: Tensor, mask: dict[str, Tensor]) -> Tensor:
    if not mask or x.dim() != 3:
        return x
    return x[mask["attention_mask"].bool()]


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_short_calls_are_the_model_itself(
    model: PreTrainedModel, side: str | None, calls: list[HybridWindow]
) -> None:
    reformer_hf.configure_attention(model, local_window=WINDOW)
    given = {"input_ids": token_ids(WINDOW), **padding(side, WINDOW)}
    assert torch.equal(logits(model, "reformer", **given), logits(model, "sdpa", **given))
    assert not calls


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_a_sparse_call_in_which_nothing_is_hidden_equals_full_attention(
    model: PreTrainedModel, side: str | None, calls: list[HybridWindow]
) -> None:
    reformer_hf.configure_attention(model, local_window=LENGTH, dense_below=WINDOW)
    mask = padding(side, LENGTH)
    given = {"input_ids": token_ids(LENGTH), **mask}
    own, full = logits(model, "reformer", **given), logits(model, "sdpa", **given)
    if isinstance(model, BertForSequenceClassification) and side == "left":
        own, full = own[1:], full[1:]  # BERT reads its answer off the first token, here padding
    elif isinstance(model, LlamaForCausalLM):
        own, full = real_part(own, mask), real_part(full, mask)
    torch.testing.assert_close(own, full, rtol=1e-4, atol=1e-5)
    assert calls


def test_a_long_call_is_sparse_in_every_self_attention_and_in_no_other(
    model: PreTrainedModel, calls: list[HybridWindow]
) -> None:
    reformer_hf.configure_attention(model, local_window=WINDOW)
    given = {"input_ids": token_ids(LENGTH)}
    assert not torch.allclose(logits(model, "reformer", **given), logits(model, "sdpa", **given))
    bart = isinstance(model, BartForConditionalGeneration)
    assert len(calls) == (4 if bart else 2)
    causal = {w.causal for w in calls}
    assert causal == ({True, False} if bart else {isinstance(model, LlamaForCausalLM)})


def test_kinds_of_layers(llama: LlamaForCausalLM, calls: list[HybridWindow]) -> None:
    given = {"input_ids": token_ids(LENGTH)}
    reformer_hf.configure_attention(llama, local_window=WINDOW, full_layers=[0, 1])
    assert torch.equal(logits(llama, "reformer", **given), logits(llama, "sdpa", **given))
    assert not calls
    reformer_hf.configure_attention(llama, full_layers=[0], local_layers=[1])
    logits(llama, "reformer", **given)
    assert [w.num_hashes for w in calls] == [0]
    calls.clear()
    reformer_hf.configure_attention(llama, full_layers=[], local_layers=[])
    logits(llama, "reformer", **given)
    assert [w.num_hashes for w in calls] == [4, 4]
    assert calls[0].hash_seed != calls[1].hash_seed


def test_later_tokens_change_no_earlier_logits(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, bucket_window=8)
    ids = token_ids(LENGTH)
    whole = logits(llama, "reformer", input_ids=ids)
    edited = ids.clone()
    edited[:, 100:] = 5
    part = logits(llama, "reformer", input_ids=edited)
    torch.testing.assert_close(part[:, :100], whole[:, :100], rtol=0, atol=1e-5)


def test_padding_changes_no_logits_of_real_tokens(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, bucket_window=8)
    ids = token_ids(LENGTH, rows=1)
    whole = logits(llama, "reformer", input_ids=ids)
    for left, right in ((20, 0), (0, 20), (7, 9)):
        padded = torch.nn.functional.pad(ids, (left, right))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        own = logits(
            llama,
            "reformer",
            input_ids=padded,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        )
        torch.testing.assert_close(own[:, left : left + LENGTH], whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("piece", [40, 75, 149])
def test_a_prefill_in_pieces_gives_what_one_prefill_gives(
    llama: LlamaForCausalLM, piece: int
) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, bucket_window=8)
    llama.set_attn_implementation("reformer")
    ids = token_ids(LENGTH + 1)[:, :LENGTH]
    with torch.no_grad():
        whole = llama(ids).logits
        past, parts = None, []
        for start in range(0, LENGTH, piece):
            stop = min(start + piece, LENGTH)
            if stop == LENGTH - 1:
                stop = LENGTH
            if start >= LENGTH - 1:
                break
            out = llama(ids[:, start:stop], past_key_values=past, use_cache=True)
            past, parts = out.past_key_values, [*parts, out.logits]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


def test_a_decoding_step_sees_the_whole_cache(
    llama: LlamaForCausalLM, calls: list[HybridWindow]
) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, full_layers=[0, 1])
    ids = token_ids(LENGTH)
    full = logits(llama, "sdpa", input_ids=ids)
    llama.set_attn_implementation("reformer")
    with torch.no_grad():
        past = llama(ids[:, :-1], use_cache=True).past_key_values
        reformer_hf.configure_attention(llama, full_layers=[])
        step = llama(ids[:, -1:], past_key_values=past).logits
    assert not calls
    torch.testing.assert_close(step[:, -1], full[:, -1], rtol=0, atol=1e-5)


def test_short_greedy_generation_is_that_of_full_attention(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=64)
    asked = {"inputs": token_ids(20), "max_new_tokens": 30, "do_sample": False}
    texts = []
    for implementation in ("sdpa", "reformer"):
        llama.set_attn_implementation(implementation)
        texts += [llama.generate(**asked, use_cache=cached) for cached in (True, False)]
    assert all(torch.equal(x, texts[0]) for x in texts)


def test_long_generation_starts_from_the_sparse_prefill(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, bucket_window=8)
    ids = token_ids(LENGTH)
    first = logits(llama, "reformer", input_ids=ids)[:, -1].argmax(-1)
    for prefill in ({}, {"prefill_chunk_size": 50}):
        text = llama.generate(ids, max_new_tokens=5, do_sample=False, **prefill)
        assert torch.equal(text[:, LENGTH], first)


@pytest.mark.parametrize("side", [None, "left"], ids=["unpadded", "left padding"])
def test_sparse_decoding_writes_what_passes_over_all_tokens_would(
    side: str | None, llama: LlamaForCausalLM, calls: list[HybridWindow]
) -> None:
    llama.set_attn_implementation("reformer")
    sizes = {"local_window": WINDOW, "bucket_window": 8}
    reformer_hf.configure_attention(llama, **sizes, sparse_decoding=True)
    mask = padding(side, LENGTH)
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0, **mask}
    with_cache = llama.generate(token_ids(LENGTH), **options)
    # Every step is sparse in both layers.
    assert len(calls) == 12 * llama.config.num_hidden_layers
    without = llama.generate(token_ids(LENGTH), **options, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    for found, expected in zip(with_cache.logits, without.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="sparse_decoding` must be True or False, got 1"):
        reformer_hf.configure_attention(llama, sparse_decoding=1)


def test_a_sliding_window_of_the_model_stays_what_it_is(calls: list[HybridWindow]) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=20)
    mistral = MistralForCausalLM(config).eval()
    reformer_hf.configure_attention(mistral, local_window=WINDOW)
    for side in (None, "left", "right"):
        mask = padding(side, LENGTH)
        given = {"input_ids": token_ids(LENGTH), **mask}
        own, full = logits(mistral, "reformer", **given), logits(mistral, "sdpa", **given)
        torch.testing.assert_close(
            real_part(own, mask), real_part(full, mask), rtol=1e-4, atol=1e-5
        )
    assert {(w.local_window, w.sink_tokens, w.num_hashes) for w in calls} == {(20, 0, 0)}


def test_packed_rows_are_full_attention_within_each_text(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW)
    ids = token_ids(LENGTH, rows=1)
    positions = torch.cat((torch.arange(90), torch.arange(60))).unsqueeze(0)
    given = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    assert torch.equal(logits(llama, "reformer", **given), logits(llama, "sdpa", **given))


def test_a_mask_of_one_s_own_is_obeyed(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW)
    mask = torch.ones(LENGTH, LENGTH).tril().bool()[None, None].expand(2, -1, -1, -1).clone()
    mask[:, :, 50:, 3] = False
    given = {"input_ids": token_ids(LENGTH), "attention_mask": mask}
    assert torch.equal(logits(llama, "reformer", **given), logits(llama, "sdpa", **given))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"softcap": 5.0}, "soft-capped"),
        ({"s_aux": torch.zeros(4)}, "learned attention sinks"),
        ({"output_attentions": True}, "attention weights are not formed"),
        ({"position_bias": torch.zeros(1, 4, 40, 40)}, "position bias"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_what_cannot_be_served_is_refused_with_model_reason_and_alternative(
    extra: dict, words: str
) -> None:
    module = torch.nn.Identity()
    module.config = SimpleNamespace(model_type="some-model")
    x = torch.zeros(1, 4, 40, 8)
    coded = torch.ones(1, 40, dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"cannot serve `some-model`.*{words}.*use `attn_impl"):
        reformer_attention(module, x, x, x, coded, **extra)


def test_a_mask_that_the_model_made_itself_is_refused() -> None:
    module, x = torch.nn.Identity(), torch.zeros(1, 4, 40, 8)
    with pytest.raises(ValueError, match=r"got a mask \(1, 40\) in torch.bool"):
        reformer_attention(module, x, x, x, torch.ones(1, 40, dtype=torch.bool))
    two = torch.ones(1, 40, dtype=torch.int32)
    two[:, 20:] = 2  # a decoder's mask next to that of its source
    for mask in (two, two[:, :30], torch.full_like(two, 7)):
        with pytest.raises(ValueError, match="for 40 keys, which the model made itself"):
            reformer_attention(module, x, x, x, mask)


def test_settings_travel_with_the_checkpoint_and_stock_transformers_ignores_them(
    llama: LlamaForCausalLM, tmp_path
) -> None:
    reformer_hf.configure_attention(llama, local_window=WINDOW, local_layers=[1])
    given = {"input_ids": token_ids(LENGTH)}
    own, full = logits(llama, "reformer", **given), logits(llama, "sdpa", **given)
    llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="reformer").eval()
    assert torch.equal(again(**given).logits, own)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert stock.config._attn_implementation == "sdpa"
    assert torch.equal(stock(**given).logits, full)


def test_configuring_changes_what_is_named_and_refuses_the_rest(llama: LlamaForCausalLM) -> None:
    reformer_hf.configure_attention(llama, local_window=99)
    assert reformer_hf.configure_attention(llama, num_hashes=2).local_window == 99
    before = dict(llama.config.reformer_attention)
    for changes, words in (
        ({"rounds": 3}, "knows the fields"),
        ({"num_hashes": -3}, "num_hashes"),
        ({"full_layers": [2]}, "0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            reformer_hf.configure_attention(llama, **changes)
    assert llama.config.reformer_attention == before
    with pytest.raises(ValueError, match="`model` must be"):
        reformer_hf.configure_attention(torch.nn.Identity())


def test_gradient_checkpointing_gives_equal_gradients_with_dropout() -> None:
    torch.manual_seed(0)
    model = tiny_llama(attention_dropout=0.2, attn_implementation="reformer").train()
    reformer_hf.configure_attention(model, local_window=WINDOW)
    ids, found = token_ids(LENGTH), []
    for checkpointing in (False, True):
        if checkpointing:
            # Its name in later releases of transformers 5, and in earlier ones.
            enable = getattr(model, "activation_checkpointing_enable", None)
            enable = enable or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(7)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_what_it_gives_full_attention(
    model: PreTrainedModel, dtype: torch.dtype
) -> None:
    reformer_hf.configure_attention(model, local_window=LENGTH, dense_below=WINDOW)
    given = {"input_ids": token_ids(LENGTH)}
    exact = logits(model, "sdpa", **given)
    with torch.autocast("cpu", dtype):
        own, full = logits(model, "reformer", **given), logits(model, "sdpa", **given)
    assert own.dtype == full.dtype
    bound = 2 * (full.float() - exact).abs().max() + torch.finfo(dtype).eps
    assert (own.float() - exact).abs().max() <= bound
