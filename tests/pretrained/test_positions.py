"""Longer documents than a model was made for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from reformer_hf import configure_attention, extend_positions

_LAYERS = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_STACKS = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
}
# Name of the classes, sizes, and what of positions they have.
_TABLES: dict[str, tuple[str, dict]] = {
    "BartConfig": ("BartForConditionalGeneration", _STACKS),
    "MBartConfig": ("MBartForConditionalGeneration", _STACKS),
    "PegasusConfig": ("PegasusForConditionalGeneration", _STACKS),
    "MarianConfig": ("MarianMTModel", _STACKS),
    "BertConfig": ("BertForMaskedLM", _LAYERS),
    "RobertaConfig": ("RobertaForMaskedLM", {**_LAYERS, "max_position_embeddings": 66}),
    "ElectraConfig": ("ElectraForMaskedLM", {**_LAYERS, "embedding_size": 32}),
    "DistilBertConfig": (
        "DistilBertForMaskedLM",
        {"vocab_size": 99, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
        | {"max_position_embeddings": 64},
    ),
    "GPT2Config": (
        "GPT2LMHeadModel",
        {"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    ),
    "OPTConfig": (
        "OPTForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
    ),
}
_ROTARY: dict[str, tuple[str, dict]] = {
    "LlamaConfig": ("LlamaForCausalLM", _LAYERS),
    "Qwen3Config": ("Qwen3ForCausalLM", {**_LAYERS, "num_key_value_heads": 2, "head_dim": 8}),
    "MistralConfig": ("MistralForCausalLM", {**_LAYERS, "num_key_value_heads": 2}),
    "GPTNeoXConfig": ("GPTNeoXForCausalLM", _LAYERS),
}


def build(config_name: str) -> PreTrainedModel:
    model_name, sizes = {**_TABLES, **_ROTARY}[config_name]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**sizes)
    return getattr(transformers, model_name)(config).eval()


def logits(model: PreTrainedModel, length: int) -> Tensor:
    ids = torch.randint(3, 99, (1, length), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    return model(**given).logits


@pytest.mark.parametrize("name", [*_TABLES, *_ROTARY])
def test_a_longer_model_reads_trains_and_reloads_with_stock_transformers(
    name: str, tmp_path
) -> None:
    model = build(name)
    extend_positions(model, 200)
    out = logits(model, 200)
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, 200), out)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", list(_TABLES))
def test_with_tables_inputs_of_the_old_length_give_what_they_gave(name: str) -> None:
    model = build(name)
    before = logits(model, 64)
    extend_positions(model, 200)
    assert torch.equal(logits(model, 64), before)


def test_a_learned_table_repeats_behind_its_offset() -> None:
    model = build("BartConfig")
    old = model.model.encoder.embed_positions.weight.detach().clone()
    extend_positions(model, 150)
    new = model.model.encoder.embed_positions.weight
    assert new.shape[0] == 152
    assert torch.equal(new[:66], old)
    assert torch.equal(new[66:130], old[2:])
    assert torch.equal(new[130:], old[2:24])


def test_a_computed_table_goes_on_and_stays_frozen() -> None:
    model = build("PegasusConfig")
    extend_positions(model, 150)
    table = model.model.encoder.embed_positions
    assert not table.weight.requires_grad
    assert not torch.allclose(table.weight[64:128], table.weight[:64])


def test_rotary_positions_are_stretched_by_the_factor_and_again() -> None:
    model = build("LlamaConfig")
    for length in (128, 256):
        extend_positions(model, length)
        rope = model.config.rope_parameters
        assert (rope["rope_type"], rope["factor"]) == ("yarn", length / 64)
        assert model.config.max_position_embeddings == length


def test_tied_weights_stay_tied() -> None:
    model = build("GPT2Config")
    extend_positions(model, 100)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_sparse_attention_and_longer_positions_work_together() -> None:
    model = build("BertConfig")
    extend_positions(model, 300)
    model.set_attn_implementation("reformer")
    configure_attention(model, local_window=300, dense_below=10)
    sparse = logits(model, 300)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(sparse, logits(model, 300), rtol=0, atol=1e-4)


def _other_rope(model: PreTrainedModel) -> None:
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "llama3"}


@pytest.mark.parametrize(
    ("change", "length", "words"),
    [
        (None, 0, "positive whole number, got 0"),
        (None, 2.5, "positive whole number, got 2.5"),
        (None, 63, "at least the 64 tokens.*got 63"),
        (_other_rope, 128, "type 'llama3'"),
    ],
    ids=["zero", "half", "shorter", "another rope"],
)
def test_what_cannot_be_extended_is_refused_and_nothing_changes(
    change: Callable[[PreTrainedModel], None] | None, length: int, words: str
) -> None:
    model = build("LlamaConfig")
    if change is not None:
        change(model)
    before = model.config.to_dict()
    with pytest.raises(ValueError, match=words):
        extend_positions(model, length)
    assert model.config.to_dict() == before


def test_models_without_positions_and_other_objects_are_refused() -> None:
    sizes = {"vocab_size": 99, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, num_heads=4))
    with pytest.raises(ValueError, match="without `max_position_embeddings`"):
        extend_positions(t5, 5000)
    with pytest.raises(ValueError, match="`model` must be a model of transformers"):
        extend_positions(torch.nn.Identity(), 5)  # type: ignore[arg-type]
    gemma = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**_LAYERS, num_key_value_heads=2, head_dim=8)
    )
    with pytest.raises(ValueError, match="one for each type of layer"):
        extend_positions(gemma, 500)
