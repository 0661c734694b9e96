"""What sparse attention would find, and the loss without logits."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from reformer_hf import configure_attention
from reformer_hf import diagnose as command_line
from reformer_hf.pretrained.diagnosis import (
    describe,
    diagnose,
    propose_local_layers,
    propose_local_layers_by_value,
    value_of_distance,
)
from reformer_hf.pretrained.language_model_loss import causal_lm_loss, token_losses
from tests.pretrained.conftest import WINDOW, token_ids

LENGTH = 200


def test_everything_visible_covers_all_of_the_mass(model: PreTrainedModel) -> None:
    found = diagnose(model, token_ids(LENGTH), local_window=LENGTH - 1, sink_tokens=2)
    assert len(found) == (4 if model.config.is_encoder_decoder else 2)
    for x in found:
        # Looking both ways, the first token does not see the last one.
        assert x.hybrid == pytest.approx(
            1.0, abs=1e-5 if isinstance(model, LlamaForCausalLM) else 1e-3
        )
    assert "100.0%" in describe(found)


def test_rounds_add_mass_and_keys_and_the_model_is_left_as_it_was(llama: LlamaForCausalLM) -> None:
    configure_attention(llama, local_window=WINDOW)
    ids = token_ids(LENGTH)
    with torch.no_grad():
        before = llama(ids).logits
    few, many = (diagnose(llama, ids, num_hashes=r, bucket_window=8) for r in (1, 8))
    for one, eight in zip(few, many, strict=True):
        assert one.local == pytest.approx(eight.local)
        assert 0.0 < one.gain < eight.gain < 1.0
        assert one.local_keys < one.hybrid_keys < eight.hybrid_keys < LENGTH
        assert one.best_head >= one.gain - 1e-6
    assert llama.config._attn_implementation == "sdpa"
    assert llama.config.reformer_attention["num_hashes"] == 4
    with torch.no_grad():
        assert torch.equal(llama(ids).logits, before)


def test_layers_that_gain_little_are_proposed_as_local(llama: LlamaForCausalLM) -> None:
    found = diagnose(llama, token_ids(LENGTH), local_window=WINDOW)
    best = sorted(x.best_head for x in found)
    assert propose_local_layers(found, best[0]) == []
    assert len(propose_local_layers(found, (best[0] + best[1]) / 2)) == 1
    assert propose_local_layers(found, 1.0) == [0, 1]


def test_distance_is_worth_what_the_loss_grows_by_without_it(llama: LlamaForCausalLM) -> None:
    configure_attention(llama, local_window=WINDOW, num_hashes=3, local_layers=[1])
    kept = dict(llama.config.reformer_attention)
    ids = token_ids(LENGTH)
    values = value_of_distance(llama, ids)
    assert llama.config.reformer_attention == kept
    assert llama.config._attn_implementation == "sdpa"
    full = float(token_losses(llama, ids).double().mean())
    assert list(values) == [0, 1]
    for layer, value in values.items():
        layers = {"local_layers": [layer], "full_layers": [1 - layer]}
        configure_attention(llama, **layers)
        llama.set_attn_implementation("reformer")
        assert full + value == pytest.approx(float(token_losses(llama, ids).double().mean()))
        llama.set_attn_implementation("sdpa")
        assert abs(value) > 1e-7


def test_the_worth_of_several_texts_is_their_mean(llama: LlamaForCausalLM) -> None:
    ids = token_ids(LENGTH)
    together = value_of_distance(llama, ids, local_window=WINDOW)
    apart = [value_of_distance(llama, text[None], local_window=WINDOW) for text in ids]
    assert len(apart) == 2
    for layer, value in together.items():
        assert value == pytest.approx(sum(x[layer] for x in apart) / 2, abs=1e-6)


def test_a_layer_that_attends_to_nothing_far_is_worth_nothing(llama: LlamaForCausalLM) -> None:
    with torch.no_grad():  # What a layer reads then has no say in what it writes.
        llama.model.layers[1].self_attn.o_proj.weight.zero_()
    values = value_of_distance(llama, token_ids(LENGTH), local_window=WINDOW)
    assert values[1] == 0.0 != values[0]


def test_a_model_without_settings_is_left_without(llama: LlamaForCausalLM) -> None:
    before = llama.config.to_dict()
    value_of_distance(llama, token_ids(LENGTH), local_window=WINDOW)
    with pytest.raises(ValueError, match="knows the fields"):
        value_of_distance(llama, token_ids(LENGTH), local_windows=WINDOW)
    assert llama.config.to_dict() == before


def test_layers_without_value_are_proposed_as_local() -> None:
    values = {0: 0.5, 1: -0.2, 2: 0.3, 3: 0.2, 4: 0.0}
    assert propose_local_layers_by_value(values, 0.5) == [1, 2, 3, 4]
    assert propose_local_layers_by_value(values, 0.51) == [1, 3, 4]
    assert propose_local_layers_by_value(values, 1.0) == [1, 4]
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="`share` must be above 0"):
            propose_local_layers_by_value(values, share)


def test_a_text_that_the_window_holds_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"more than local_window=256 tokens\], got \(2, 200\)"):
        diagnose(llama, token_ids(LENGTH))
    with pytest.raises(ValueError, match=r"more than local_window=256 tokens\], got \(2, 200\)"):
        value_of_distance(llama, token_ids(LENGTH))


def test_the_command_line_reports_and_proposes(
    llama: LlamaForCausalLM, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    from reformer_hf import byte_tokenizer

    tokenizer = byte_tokenizer()
    llama.resize_token_embeddings(len(tokenizer))
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night. " * 20, encoding="utf-8")
    asked = ["--model", str(tmp_path), "--file", str(text), "--local_window", "32"]
    command_line.main([*asked, "--length", "150"])
    printed = capsys.readouterr().out
    assert "loss: full attention" in printed
    assert "configure_attention(model, local_window=32, local_layers=[" in printed
    command_line.main([*asked, "--length", "150", "--samples", "3", "--by_loss", "--share", "1"])
    printed = capsys.readouterr().out
    assert "distance worth" in printed
    assert printed.count(" nats\n") == 2
    assert "100% of the worth of distance need none" in printed
    with pytest.raises(SystemExit):
        command_line.main([*asked, "--length", "9999"])
    assert "expected at least 9999 tokens" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main([*asked, "--length", "150", "--samples", "0"])
    assert "--samples: expected a positive number" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # before the model is even looked for
        command_line.main(["--model", "none", "--file", "none", "--share", "1.1"])
    assert "`share` must be above 0 and at most 1, got 1.1" in capsys.readouterr().err


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_the_loss_without_logits_is_that_of_the_model(
    llama: LlamaForCausalLM, chunk_size: int
) -> None:
    ids = token_ids(40)
    expected = llama(ids, labels=ids).loss
    own = causal_lm_loss(llama, ids, chunk_size=chunk_size)
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(token_losses(llama, ids, chunk_size=chunk_size).mean(), expected)
    grads = [torch.autograd.grad(x, list(llama.parameters())) for x in (own, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_of_another_model_or_of_one_token_is_refused(llama: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        causal_lm_loss(llama, token_ids(1))
    with pytest.raises(ValueError, match="causal language model with a linear head"):
        causal_lm_loss(llama.model, token_ids(9))
    llama.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        causal_lm_loss(llama, token_ids(9))


def test_a_tied_head_counts_once() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2)).eval()
    ids = token_ids(30)
    model(ids, labels=ids).loss.backward()
    expected = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    causal_lm_loss(model, ids).backward()
    torch.testing.assert_close(model.transformer.wte.weight.grad, expected)
