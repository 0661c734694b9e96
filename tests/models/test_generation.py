"""`generate()`: what it returns is what the model's own predictions say, batched or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import HEAD_OF, Head, pad_rows, random_ids

STEPS = 7
# No end token, so that all rows get equally long.
OPTIONS = {"eos_token_id": None, "num_hashes": 3}
DECODING = {"max_new_tokens": STEPS, "pad_token_id": 0}


def built(head: Head, **options: Any) -> ReformerPreTrainedModel:
    return head.build(**{**OPTIONS, **options}).eval()


def prompts() -> list[Tensor]:
    return [random_ids(n, seed=n) for n in (23, 5, 40)]


def naive_greedy(head: Head, model: ReformerPreTrainedModel, prompt: Tensor) -> list[int]:
    """The tokens that greedy decoding adds to one prompt, by whole forward passes."""
    source = prompt.unsqueeze(0)
    written = torch.tensor([[model.config.decoder_start_token_id]]) if head.seq2seq else source
    for _ in range(STEPS):
        inputs = {"decoder_input_ids": written} if head.seq2seq else {}
        logits = model(source if head.seq2seq else written, **inputs).logits
        written = torch.cat((written, logits[:, -1:].argmax(-1)), dim=1)
    return written[0, -STEPS:].tolist()


@torch.no_grad()
def test_greedy_decoding_follows_the_largest_logit(generating_head: Head) -> None:
    model = built(generating_head)
    for prompt in prompts():
        written = model.generate(prompt.unsqueeze(0), do_sample=False, **DECODING)
        assert written[0, -STEPS:].tolist() == naive_greedy(generating_head, model, prompt)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "sides"),
    # A decoder continues on the right, so only a source can be padded there.
    [("causal_lm", "l"), ("seq2seq_lm", "l"), ("seq2seq_lm", "r"), ("seq2seq_lm", "rl")],
)
def test_a_padded_batch_writes_what_its_rows_write_alone(name: str, sides: str) -> None:
    head = HEAD_OF[name]
    model = built(head)
    ids, mask = pad_rows(prompts(), sides, extra=4)
    written = model.generate(ids, attention_mask=mask, do_sample=False, **DECODING)
    for row, prompt in zip(written, prompts(), strict=True):
        assert row[-STEPS:].tolist() == naive_greedy(head, model, prompt)


@torch.no_grad()
def test_beams_of_a_padded_batch_are_those_of_its_rows(generating_head: Head) -> None:
    model = built(generating_head)
    ids, mask = pad_rows(prompts(), "l")
    written = model.generate(ids, attention_mask=mask, num_beams=4, **DECODING)
    for row, prompt in zip(written, prompts(), strict=True):
        alone = model.generate(prompt.unsqueeze(0), num_beams=4, **DECODING)
        assert torch.equal(row[-STEPS:], alone[0, -STEPS:])


@torch.no_grad()
def test_scores_of_beams_are_the_log_probabilities_of_what_was_written(
    generating_head: Head,
) -> None:
    model = built(generating_head)
    prompt = prompts()[0].unsqueeze(0)
    output = model.generate(
        prompt,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **DECODING,
    )
    assert len(set(map(tuple, output.sequences.tolist()))) == 4
    assert output.sequences_scores.tolist() == sorted(output.sequences_scores, reverse=True)
    for sequence, score in zip(output.sequences, output.sequences_scores, strict=True):
        inputs = {"decoder_input_ids": sequence.unsqueeze(0)} if generating_head.seq2seq else {}
        source = prompt if generating_head.seq2seq else sequence.unsqueeze(0)
        logits = model(source, **inputs).logits[0, -STEPS - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, sequence[-STEPS:].unsqueeze(1))
        assert score.item() == pytest.approx(chosen.sum().item(), abs=1e-4)


@torch.no_grad()
def test_sampling_is_what_the_seed_says(generating_head: Head) -> None:
    model = built(generating_head)
    ids, mask = pad_rows(prompts(), "l")
    written = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        written.append(model.generate(ids, attention_mask=mask, do_sample=True, **DECODING))
    assert torch.equal(written[0], written[1])
    assert not torch.equal(written[0], written[2])
    assert int(written[0].max()) < 61


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_prompt_of_vectors_gives_what_its_ids_give(generating_head: Head, num_beams: int) -> None:
    model = built(generating_head)
    ids, mask = pad_rows(prompts(), "l")
    arguments = {"attention_mask": mask, "num_beams": num_beams, "do_sample": False, **DECODING}
    expected = model.generate(ids, **arguments)
    vectors = model.get_input_embeddings()(ids)
    written = model.generate(inputs_embeds=vectors, **arguments)
    # A causal model returns new tokens only: there are no ids of the prompt.
    assert torch.equal(written[:, -STEPS:], expected[:, -STEPS:])


@torch.no_grad()
def test_writing_stops_at_the_end_token_of_each_row(generating_head: Head) -> None:
    model = built(generating_head)
    ids, mask = pad_rows(prompts(), "l")
    arguments = {"attention_mask": mask, "do_sample": False, **DECODING}
    free = model.generate(ids, **arguments)[:, -STEPS:]
    end = int(free[1, 2])
    stopped = model.generate(ids, eos_token_id=end, **arguments)
    new = stopped[:, ids.shape[1] :] if not generating_head.seq2seq else stopped[:, 1:]
    for row, expected in zip(new.tolist(), free.tolist(), strict=True):
        if end in expected:
            keep = expected.index(end) + 1
            assert row[:keep] == expected[:keep]
            assert set(row[keep:]) <= {0}
        else:
            assert row == expected


@torch.no_grad()
def test_generating_leaves_the_model_as_it_was(generating_head: Head) -> None:
    model = built(generating_head)
    before = model.config.to_dict()
    prompt = prompts()[0].unsqueeze(0)
    first = model.generate(prompt, do_sample=False, **DECODING)
    again = model.generate(prompt, do_sample=False, use_cache=False, **DECODING)
    assert torch.equal(first, again)
    assert model.config.to_dict() == before


@torch.no_grad()
def test_a_prompt_that_leaves_no_room_is_an_error() -> None:
    model = built(HEAD_OF["causal_lm"], max_position_embeddings=10)
    with pytest.raises(ValueError, match=r"\[0, max_position_embeddings=10\), got 10"):
        model.generate(random_ids(1, 8, seed=1), do_sample=False, **DECODING)


LIMITS = {"max_position_embeddings": 40, "max_target_positions": 12}


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("as_vectors", [False, True], ids=["ids", "vectors"])
def test_all_positions_can_be_written_and_one_more_is_refused_at_once(
    generating_head: Head, use_cache: bool, as_vectors: bool
) -> None:
    seq2seq = generating_head.seq2seq
    # The last token is written, and not read.
    room, limit = (12, "max_target_positions=12") if seq2seq else (18, "max_position_embeddings=40")
    limits = LIMITS if seq2seq else {"max_position_embeddings": 40}
    model = built(generating_head, **limits)
    ids, mask = pad_rows([random_ids(23, seed=1), random_ids(5, seed=2)], "l", extra=4)
    prompt = {"inputs_embeds": model.get_input_embeddings()(ids)} if as_vectors else {"inputs": ids}
    arguments = {"attention_mask": mask, "use_cache": use_cache, "pad_token_id": 0, **prompt}
    written = model.generate(**arguments, max_new_tokens=room)
    assert written.shape[1] == room + (1 if seq2seq else 0 if as_vectors else ids.shape[1])
    calls: list[object] = []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    with pytest.raises(ValueError, match=rf"`max_new_tokens` or .*{limit}\).*ask for 1 tokens"):
        model.generate(**arguments, max_new_tokens=room + 1)
    assert not calls


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
def test_a_length_that_nobody_asked_for_ends_where_positions_do() -> None:
    model = built(HEAD_OF["seq2seq_lm"], max_target_positions=12)
    assert model.generate(random_ids(1, 8, seed=1), pad_token_id=0).shape[1] == 12


@torch.no_grad()
def test_decoder_prompts_are_continued() -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = built(head)
    source = prompts()[0].unsqueeze(0)
    written = model.generate(source, do_sample=False, **DECODING)
    start = written[:, :4]
    arguments = {**DECODING, "max_new_tokens": STEPS - 3}
    again = model.generate(source, decoder_input_ids=start, do_sample=False, **arguments)
    assert torch.equal(again, written)


@torch.no_grad()
def test_an_encoder_output_used_for_generation_is_good_for_other_weights_too() -> None:
    model = built(HEAD_OF["seq2seq_lm"])
    target = random_ids(1, 9, seed=2)
    encoded = model.get_encoder()(prompts()[0].unsqueeze(0))
    first = model.generate(encoder_outputs=encoded, do_sample=False, **DECODING)
    for layer in model.model.decoder.stack.layers:
        layer.cross_attention.value.weight.neg_()
    fresh = (encoded.last_hidden_state,)
    expected = model(encoder_outputs=fresh, decoder_input_ids=target).logits
    assert torch.equal(model(encoder_outputs=encoded, decoder_input_ids=target).logits, expected)
    second = model.generate(encoder_outputs=encoded, do_sample=False, **DECODING)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_the_source_is_projected_once_for_a_whole_generation() -> None:
    model = built(HEAD_OF["seq2seq_lm"])
    calls: list[int] = []
    for layer in model.model.decoder.stack.layers:
        layer.cross_attention.key.register_forward_hook(lambda *_: calls.append(1))
    model.get_encoder().register_forward_hook(lambda *_: calls.append(100))
    model.generate(prompts()[0].unsqueeze(0), num_beams=4, **DECODING)
    assert sum(calls) == 100 + len(model.model.decoder.stack.layers)
