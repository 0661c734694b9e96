"""Summarize documents with a trained model.

    python scripts/summarize.py MODEL report.pdf notes.md page.html
    cat minutes.txt | python scripts/summarize.py MODEL -

Documents are txt, md, rst, py, html, pdf (with the package pypdf) or standard input. What MODEL is
asked, and how much it reads of a document, is what it was trained with by run_summarization.py; a
model from elsewhere is asked as `--prompt_template` says. Summaries go to standard output, what was
read of each document to standard error. On a terminal a summary appears as it is written.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    TextStreamer,
)

import reformer_hf  # noqa: F401  (registers the architecture and the attention)
from training.arguments import SummarizationArguments, exit_code
from training.causal_summarization import Prompt
from training.documents import STDIN, read_document
from training.summarization import HABITS, is_causal


@dataclass(frozen=True)
class Summary:
    """What was made of one document.

    Attributes:
        name: of the document.
        text: the summary.
        read: tokens that the model read.
        total: tokens of the document.
    """

    name: str
    text: str
    read: int
    total: int


class Summarizer:
    """A model, its tokenizer, and how it is asked.

    Args:
        model_name: checkpoint directory or Hub id.
        options: arguments of the command line that are given, by name.

    Raises:
        ValueError: the model cannot be loaded, is none that writes, or has no room for a document.
    """

    def __init__(self, model_name: str, options: dict[str, Any]) -> None:
        try:
            config = AutoConfig.from_pretrained(model_name)
            self.causal = is_causal(config)
            kind = AutoModelForCausalLM if self.causal else AutoModelForSeq2SeqLM
            # What was trained in LSH attention reads in it too, unless told otherwise.
            trained = "reformer" if getattr(config, "reformer_attention", None) else None
            self.model: Any = kind.from_pretrained(
                model_name, attn_implementation=options.get("attn_implementation", trained)
            ).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(model_name)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"model: cannot load {model_name!r}: {reason}") from error
        habits = {**_defaults(config), **(getattr(config, HABITS, None) or {}), **options}
        self.length: int = habits["max_source_length"]
        self.prefix: str = habits["source_prefix"]
        self.new_tokens: int | None = options.get("max_new_tokens")
        self.prompt = Prompt([], [])
        if self.causal:
            self.prompt = Prompt.from_template(
                self.tokenizer, habits["prompt_template"], chat=habits["chat_prompt"]
            )
            self.prompt.room(self.length)

    @torch.no_grad()
    def summarize(self, name: str, document: str, *, stream: bool = False) -> Summary:
        """The summary of one document; with `stream` it is printed while it is written."""
        text = self.prefix + document
        ids = self.tokenizer(text, add_special_tokens=not self.causal, verbose=False).input_ids
        read = min(len(ids), self.prompt.room(self.length))
        if self.causal:
            inputs = torch.tensor([self.prompt.around(ids, self.length)])
        else:
            cut = {"truncation": True, "max_length": self.length}
            inputs = self.tokenizer(text, return_tensors="pt", **cut).input_ids
        print(f"{name}: read {read:,} of {len(ids):,} tokens", file=sys.stderr, flush=True)
        chosen: dict[str, Any] = {}
        if self.new_tokens is not None:
            chosen |= {"max_new_tokens": self.new_tokens, "max_length": None}
        if stream:
            chosen["streamer"] = TextStreamer(
                self.tokenizer, skip_prompt=self.causal, skip_special_tokens=True
            )
        inputs = inputs.to(self.model.device)
        written = self.model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **chosen
        )[0]
        written = written[inputs.shape[1] :] if self.causal else written
        found = self.tokenizer.decode(written, skip_special_tokens=True).strip()
        return Summary(name, found, read, len(ids))


def _defaults(config: Any) -> dict[str, Any]:
    """How a model is asked that does not say: as run_summarization.py would."""
    known = SummarizationArguments()
    names = ("source_prefix", "prompt_template", "chat_prompt", "max_source_length")
    found = {name: getattr(known, name) for name in names}
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None:
        found["max_source_length"] = min(found["max_source_length"], longest)
    return found


class _Parser(argparse.ArgumentParser):
    """Refuses with ValueError instead of a page of usage and an exit."""

    def error(self, message: str) -> Any:
        raise ValueError(message)


def summarize(argv: Sequence[str] | None = None) -> list[Summary]:
    """Do what the command line asks for.

    Raises:
        ValueError: arguments, model or documents cannot work; documents are read before the model.
    """
    parser = _Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", help="checkpoint directory or Hub id")
    add("files", nargs="+", help=f"documents; {STDIN}: standard input")
    add("--max_source_length", type=int, help="tokens to read of a document, prompt included")
    add("--max_new_tokens", type=int, help="tokens to write at most")
    add("--prompt_template", help="what a causal language model is given, with {document} in it")
    add("--chat_prompt", action="store_true", default=None, help="in the chat template")
    add("--attn_implementation", help="sdpa, eager or reformer; unset: as it was trained")
    arguments = vars(parser.parse_args(argv))
    name, files = arguments.pop("model"), arguments.pop("files")
    options = {key: value for key, value in arguments.items() if value is not None}
    for key in ("max_source_length", "max_new_tokens"):
        if options.get(key, 1) < 1:
            raise ValueError(f"{key}: expected a positive integer, got {options[key]}")
    documents = [(file, read_document(file)) for file in files]

    summarizer = Summarizer(name, options)
    found = []
    stream = sys.stdout.isatty()
    for file, document in documents:
        if len(files) > 1:
            print(f"== {file}")
        found.append(summarizer.summarize(file, document, stream=stream))
        if not stream:
            print(found[-1].text, flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run `summarize`; the exit code."""
    return exit_code(summarize, argv)


if __name__ == "__main__":
    sys.exit(main())
