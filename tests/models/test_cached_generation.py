"""Decoding with a cache is decoding without: the same logits at every step, the same tokens."""

from __future__ import annotations

import queue
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextGenerationPipeline, TextStreamer, pipeline
from transformers.generation.streamers import BaseStreamer

from reformer_hf import (
    ReformerCache,
    ReformerEncoderDecoderCache,
    ReformerForCausalLM,
    ReformerPreTrainedModel,
    byte_tokenizer,
)
from reformer_hf.models import generation
from tests.models.builders import HEAD_OF, LAYER_MIXES, Head, pad_rows, random_ids

TOLERANCE = 1e-4
NO_END: dict[str, Any] = {"eos_token_id": None}
# With one matrix for both, a model without training repeats the token that it reads.
TALKATIVE: dict[str, Any] = {**NO_END, "tie_word_embeddings": False}


def built(head: Head, layers: tuple[str, ...], **options: Any) -> ReformerPreTrainedModel:
    name = "decoder_attn_layers" if head.seq2seq else "attn_layers"
    return head.build(**{name: list(layers), **TALKATIVE, **options}).eval()


def write(model: ReformerPreTrainedModel, ids: Tensor, mask: Tensor, **options: Any) -> Any:
    settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, **options}
    return model.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
    )


def assert_same(
    model: ReformerPreTrainedModel, ids: Tensor, mask: Tensor, **options: Any
) -> Tensor:
    """What is written with a cache; without one come the same logits and tokens."""
    with_cache = write(model, ids, mask, use_cache=True, **options)
    without = write(model, ids, mask, use_cache=False, **options)
    assert with_cache.past_key_values is not None
    assert without.past_key_values is None
    assert len(with_cache.logits) == len(without.logits)
    for ours, expected in zip(with_cache.logits, without.logits, strict=True):
        assert (ours - expected).abs().max() <= TOLERANCE
    assert torch.equal(with_cache.sequences, without.sequences)
    return with_cache.sequences


def texts(length: int, batch: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths, padded on the left."""
    rows = [random_ids(max(1, length - 5 * i), seed=length + i) for i in range(batch)]
    return pad_rows(rows, "l")


@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("layers", LAYER_MIXES, ids="-".join)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_the_cache_changes_no_logit_and_no_token(
    generating_head: Head, layers: tuple[str, ...], rounds: int, num_beams: int
) -> None:
    model = built(generating_head, layers, num_hashes=rounds)
    ids, mask = texts(65, batch=3)
    assert_same(model, ids, mask, num_beams=num_beams)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_prompts_of_any_length(length: int) -> None:
    options = {"lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16}
    model = built(HEAD_OF["causal_lm"], ("lsh", "local"), **options)
    for batch in (1, 3):
        assert_same(model, *texts(length, batch))


@torch.no_grad()
def test_counted_once_too() -> None:
    model = built(HEAD_OF["causal_lm"], ("lsh", "lsh"), count_duplicates=False, num_hashes=4)
    assert_same(model, *texts(65, batch=3))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"hash_family": "euclidean", "hash_bucket_width": 2.0},
        {"hash_family": "random"},
        {"num_buckets": [4, 8]},
        {"exact_reversible": False},
        {"stream_merge": "concat"},
        {"head_merge": "average", "axial_pos_embds": False},
        {"lsh_num_chunks_before": 3, "local_num_chunks_before": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_whatever_the_configuration(options: dict[str, Any]) -> None:
    assert_same(built(HEAD_OF["causal_lm"], ("local", "lsh"), **options), *texts(50, batch=2))


# ---- long texts, against one pass over what was written ----


def one_pass(model: ReformerPreTrainedModel, ids: Tensor, mask: Tensor, out: Any) -> Tensor:
    """The logits `[B, new, V]` from which the tokens of a generation follow, all at once."""
    written = out.sequences
    if model.config.is_encoder_decoder:
        rows = written.shape[0] // ids.shape[0]
        source, mask = ids.repeat_interleave(rows, 0), mask.repeat_interleave(rows, 0)
        decoder = {"decoder_input_ids": written[:, :-1], "planned_lengths": written.shape[1]}
        return model(source, attention_mask=mask, **decoder).logits
    mask = mask.repeat_interleave(written.shape[0] // ids.shape[0], 0)
    mask = torch.cat((mask, mask.new_ones(len(mask), written.shape[1] - mask.shape[1])), dim=1)
    planned = mask.sum(1).tolist()
    logits = model(written, attention_mask=mask, planned_lengths=planned).logits
    return logits[:, ids.shape[1] - 1 : -1]


def assert_long_text(model: ReformerPreTrainedModel, length: int, batch: int) -> None:
    ids, mask = texts(length, batch)
    out = write(model, ids, mask, max_new_tokens=200)
    expected = one_pass(model, ids, mask, out)
    assert (torch.stack(out.logits, dim=1) - expected).abs().max() <= TOLERANCE
    assert torch.equal(out.sequences[:, -200:], expected.argmax(-1))


def assert_long_beams(model: ReformerPreTrainedModel, length: int) -> None:
    ids, mask = texts(length, batch=1)
    beams = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    out = write(model, ids, mask, max_new_tokens=200, output_scores=True, **beams)
    chosen = out.sequences[:, -200:].unsqueeze(-1)
    scores = one_pass(model, ids, mask, out).log_softmax(-1).gather(-1, chosen).sum((1, 2))
    torch.testing.assert_close(out.sequences_scores, scores, atol=1e-3, rtol=0)


@torch.no_grad()
def test_two_hundred_tokens_after_a_thousand() -> None:
    options = {"lsh_attn_chunk_length": 64, "local_attn_chunk_length": 64}
    model = built(HEAD_OF["causal_lm"], ("full", "lsh", "local"), num_hashes=4, **options)
    assert_long_text(model, 1000, batch=3)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("layers", LAYER_MIXES, ids="-".join)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_two_hundred_tokens(layers: tuple[str, ...], rounds: int, length: int) -> None:
    options = {"lsh_attn_chunk_length": 64, "local_attn_chunk_length": 64}
    model = built(HEAD_OF["causal_lm"], layers, num_hashes=rounds, **options)
    assert_long_text(model, length, batch=1)
    assert_long_text(model, length, batch=3)
    assert_long_beams(model, length)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("layers", LAYER_MIXES, ids="-".join)
def test_two_hundred_tokens_of_a_target(layers: tuple[str, ...]) -> None:
    model = built(HEAD_OF["seq2seq_lm"], layers)
    for length in (1, 64, 1000):
        assert_long_text(model, length, batch=3)
        assert_long_beams(model, length)


# ---- the cache is what makes it so ----


@torch.no_grad()
def test_beams_need_their_caches_reordered(
    generating_head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(generating_head, ("lsh", "full"))
    ids, mask = texts(40, batch=2)
    options = {"num_beams": 4, "output_scores": True}
    expected = write(model, ids, mask, **options).sequences_scores
    assert torch.equal(write(model, ids, mask, **options).sequences_scores, expected)
    monkeypatch.setattr(ReformerCache, "reorder_cache", lambda *_: None)
    assert not torch.allclose(write(model, ids, mask, **options).sequences_scores, expected)


@torch.no_grad()
def test_a_step_reads_one_token(generating_head: Head) -> None:
    model = built(generating_head, ("lsh", "local"))
    lengths: list[int] = []
    stack = (model.model.decoder if generating_head.seq2seq else model.reformer).stack
    stack.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    write(model, *texts(30, batch=2))
    assert lengths == [1 if generating_head.seq2seq else 30] + [1] * 19


@torch.no_grad()
def test_the_plan_covers_prompt_and_new_tokens_of_each_row(generating_head: Head) -> None:
    model = built(generating_head, ("lsh",))
    ids, mask = texts(30, batch=2)
    cache = write(model, ids, mask).past_key_values
    if generating_head.seq2seq:
        assert isinstance(cache, ReformerEncoderDecoderCache)
        assert cache.self_attention_cache.planned_lengths == (21, 21)
    else:
        assert cache.planned_lengths == (50, 45)


@torch.no_grad()
def test_without_a_cache_if_the_configuration_says_so(generating_head: Head) -> None:
    model = built(generating_head, ("lsh",))
    model.generation_config.use_cache = False
    assert write(model, *texts(30, batch=2)).past_key_values is None


# ---- other ways to write ----


@torch.no_grad()
def test_sampling_draws_the_same(generating_head: Head) -> None:
    model = built(generating_head, ("lsh", "local"))
    ids, mask = texts(30, batch=2)
    written = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        written.append(write(model, ids, mask, use_cache=use_cache, do_sample=True).sequences)
    assert torch.equal(*written)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_prompt_read_in_chunks_gives_the_same(chunk: int) -> None:
    model = built(HEAD_OF["causal_lm"], ("full", "lsh", "local"))
    ids, mask = texts(60, batch=3)
    whole = write(model, ids, mask)
    chunked = write(model, ids, mask, prefill_chunk_size=chunk)
    for ours, expected in zip(chunked.logits, whole.logits, strict=True):
        assert (ours - expected).abs().max() <= TOLERANCE
    assert torch.equal(chunked.sequences, whole.sequences)


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_prompt_of_vectors(use_cache: bool) -> None:
    model = built(HEAD_OF["causal_lm"], ("lsh", "local"))
    ids, mask = texts(40, batch=2)
    expected = write(model, ids, mask).sequences[:, ids.shape[1] :]
    vectors = model.get_input_embeddings()(ids)
    written = model.generate(
        inputs_embeds=vectors,
        attention_mask=mask,
        max_new_tokens=20,
        do_sample=False,
        use_cache=use_cache,
    )
    assert torch.equal(written, expected)


@torch.no_grad()
@pytest.mark.parametrize("prompt_lookup", [False, True])
# The assistant's own call passes its settings twice, as transformers has it.
@pytest.mark.filterwarnings("ignore:Passing `generation_config` together")
def test_assisted_decoding_writes_what_greedy_decoding_writes(
    generating_head: Head, prompt_lookup: bool
) -> None:
    model = built(generating_head, ("lsh", "local", "full"))
    assistant = built(generating_head, ("lsh",), seed=4)
    ids, mask = texts(40, batch=1)
    expected = write(model, ids, mask).sequences
    helper = {"prompt_lookup_num_tokens": 3} if prompt_lookup else {"assistant_model": assistant}
    written = write(model, ids, mask, **helper)
    assert torch.equal(written.sequences, expected)


@torch.no_grad()
def test_a_talk_goes_on_from_the_returned_cache() -> None:
    model = built(HEAD_OF["causal_lm"], ("full", "lsh", "local"))
    ids, mask = texts(30, batch=2)
    cache = ReformerCache(model.config, planned_lengths=[100, 95])
    first = write(model, ids, mask, past_key_values=cache)
    said = torch.cat((first.sequences, random_ids(2, 9, seed=8)), dim=1)
    full_mask = torch.cat((mask, mask.new_ones(2, said.shape[1] - mask.shape[1])), dim=1)
    second = write(model, said, full_mask, past_key_values=first.past_key_values)
    whole = ReformerCache(model.config, planned_lengths=[100, 95])
    expected = write(model, said, full_mask, past_key_values=whole)
    for ours, wanted in zip(second.logits, expected.logits, strict=True):
        assert (ours - wanted).abs().max() <= TOLERANCE
    assert torch.equal(second.sequences, expected.sequences)


@torch.no_grad()
def test_attention_weights_are_those_of_whole_sequences(generating_head: Head) -> None:
    model = built(generating_head, ("lsh",))
    ids, mask = texts(30, batch=1)
    out = write(model, ids, mask, output_attentions=True, max_new_tokens=3)
    assert torch.equal(out.sequences, write(model, ids, mask, max_new_tokens=3).sequences)
    weights = out.decoder_attentions if generating_head.seq2seq else out.attentions
    last = out.sequences.shape[1] - 1
    assert weights[-1][0].shape[-2:] == (last, last)


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
def test_hidden_states_of_a_step_are_those_of_its_tokens(
    num_beams: int, generating_head: Head
) -> None:
    model = built(generating_head, ("lsh", "local", "full"))
    ids, mask = texts(30, batch=2)
    prefix = "decoder_" if generating_head.seq2seq else ""
    options = {"output_hidden_states": True, "max_new_tokens": 4, "num_beams": num_beams}
    with_cache, without = (
        write(model, ids, mask, use_cache=use_cache, **options)[f"{prefix}hidden_states"]
        for use_cache in (True, False)
    )
    read = 1 if generating_head.seq2seq else ids.shape[1]
    assert len(with_cache) == len(without) == 4
    for step, (ours, expected) in enumerate(zip(with_cache, without, strict=True)):
        assert len(ours) == len(expected) == 4
        for state, whole in zip(ours, expected, strict=True):
            new = read if step == 0 else 1
            assert state.shape[:2] == (2 * num_beams, new)
            assert whole.shape[:2] == (2 * num_beams, read + step)
            assert (state[:, -1] - whole[:, -1]).abs().max() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_other_cache_implementations_are_refused(
    generating_head: Head, implementation: str
) -> None:
    model = built(generating_head, ("lsh",))
    with pytest.raises(ValueError, match=rf"\[None, 'dynamic'\], got '{implementation}'"):
        write(model, *texts(5, batch=1), cache_implementation=implementation)


class Collected(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.parts: queue.Queue[Tensor | None] = queue.Queue()

    def put(self, value: Tensor) -> None:
        self.parts.put(value.flatten())

    def end(self) -> None:
        self.parts.put(None)


@torch.no_grad()
def test_tokens_are_streamed_as_they_are_written() -> None:
    model = built(HEAD_OF["causal_lm"], ("lsh",))
    ids, _ = texts(12, batch=1)
    streamer = Collected()
    written = model.generate(ids, max_new_tokens=9, do_sample=False, streamer=streamer)
    parts = [streamer.parts.get() for _ in range(11)]
    assert parts[-1] is None
    assert torch.equal(torch.cat(parts[:-1]), written[0])


def test_the_pipeline_and_the_text_streamer_write_text(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    config = HEAD_OF["causal_lm"].config(vocab_size=len(tokenizer), **NO_END)
    torch.manual_seed(0)
    model = ReformerForCausalLM(config).eval()
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    assert isinstance(writer, TextGenerationPipeline)
    settings = {"max_new_tokens": 12, "do_sample": False}
    text = writer("Once", return_full_text=False, **settings)[0]["generated_text"]
    inputs = tokenizer("Once", return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    written = model.generate(**inputs, streamer=streamer, **settings)
    new = written[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == text
    assert capsys.readouterr().out.strip() == text.strip()


@torch.no_grad()
def test_the_chunk_pattern_decodes_without_a_cache_and_says_so(
    generating_head: Head, caplog: pytest.LogCaptureFixture
) -> None:
    generation._warn_once_without_cache.cache_clear()
    model = built(generating_head, ("lsh", "local"), attention_pattern="chunk")
    ids, mask = texts(30, batch=1)
    out = write(model, ids, mask, use_cache=True)
    assert out.past_key_values is None
    assert torch.equal(out.sequences, write(model, ids, mask, use_cache=False).sequences)
    assert [r.levelname for r in caplog.records if "without a cache" in r.message] == ["WARNING"]
    with pytest.raises(ValueError, match=r"must be .window. for an exact cache"):
        model(ids, decoder_input_ids=ids, use_cache=True)
