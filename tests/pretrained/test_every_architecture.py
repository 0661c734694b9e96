"""Every architecture of the installed transformers: served, and equal to full attention where
nothing is hidden, or refused."""

from __future__ import annotations

import warnings

import pytest
import transformers

from tests.pretrained.architectures import (
    TOLERANCE,
    Architecture,
    Unbuilt,
    architectures,
    compare,
    padding_masks,
)

# What people are most likely to bring, and one of each sort: these run by default.
_SPARSE = (
    *("bart", "bert", "camembert", "distilbert", "electra", "gemma", "gemma3_text", "gpt2"),
    *(
        "gpt_neox",
        "llama",
        "m2m_100",
        "marian",
        "mbart",
        "mistral",
        "mixtral",
        "modernbert",
        "olmo2",
    ),
    *("opt", "pegasus", "phi3", "qwen2", "qwen3", "roberta", "smollm3", "starcoder2"),
    *("xlm-roberta",),
)
_FULL = ("t5",)
_REFUSED = ("doge", "gemma2", "gpt_oss", "pegasus_x", "t5gemma2")


@pytest.fixture(scope="module")
def by_type() -> dict[str, Architecture]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modeling files warn when they are imported
        return {a.model_type: a for a in architectures()}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Configurations warn about the sizes that the tests give them."""
    transformers.logging.set_verbosity_error()


def check(architecture: Architecture) -> str:
    """What becomes of a model; fails if it is silently wrong."""
    outcome = "refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side, mask in padding_masks().items():
            try:
                difference, calls = compare(architecture, mask)
            except Unbuilt:
                return "untried"
            except ValueError as error:
                message = str(error)
                if 'attn_implementation="reformer"' not in message or "; use " not in message:
                    raise
                continue
            assert difference <= TOLERANCE, f"{architecture.model_type}, padding: {side}"
            outcome = "sparse" if calls else "full"
    return outcome


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        *((name, "sparse") for name in _SPARSE),
        *((name, "full") for name in _FULL),
        *((name, "refused") for name in _REFUSED),
    ],
)
def test_a_model_is_served_like_full_attention_or_refused(
    model_type: str, expected: str, by_type: dict[str, Architecture]
) -> None:
    if model_type not in by_type:
        pytest.skip(f"this transformers has no {model_type}")
    assert check(by_type[model_type]) == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_architecture_is_silently_wrong(by_type: dict[str, Architecture]) -> None:
    outcomes = {name: check(architecture) for name, architecture in by_type.items()}
    assert sum(x == "sparse" for x in outcomes.values()) >= 100
