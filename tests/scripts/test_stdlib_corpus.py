"""The embedded corpus: docstrings are really gone, and no module is in two splits."""

import ast
import statistics
import textwrap

import pytest

from training.stdlib_corpus import (
    examples_of_source,
    split_of,
    stdlib_examples,
    stdlib_sources,
    stdlib_splits,
)

FILLER = "\n".join(f"value_{number} = {number}" for number in range(30))


@pytest.fixture(scope="module")
def corpus():
    return stdlib_examples()


@pytest.fixture(scope="module")
def splits():
    return stdlib_splits()


def documents(source: str) -> dict[str, str]:
    found = examples_of_source(textwrap.dedent(source), "m")
    return {example.name: example.document for example in found}


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def test_module_loses_its_docstring_and_nothing_else():
    source = f'# first line\n"""One two three four.\n\nAnd five."""\n\nimport os\n{FILLER}\n'
    assert documents(source) == {"m": f"# first line\n\nimport os\n{FILLER}\n"}


def test_the_summary_is_the_first_paragraph_on_one_line():
    docstring = "\n    What it does,\n    in two lines.\n\n    And how.\n    "
    (example,) = examples_of_source(f'"""{docstring}"""\n{FILLER}\n', "m")
    assert example.summary == "What it does, in two lines."


def test_class_keeps_decorators_and_loses_only_its_own_docstring():
    body = f'    """What the class is for."""\n{indented(FILLER)}\n'
    method = '\n    def f(self):\n        """A method."""\n'
    found = documents(f"@decorated\nclass A(B):\n{body}{method}\nafter = 1\n")
    assert found == {"m.A": f"@decorated\nclass A(B):\n{indented(FILLER)}\n{method}"}


def test_nested_class_is_moved_to_the_left_margin():
    inner = f'class Inner:\n    """What the inner class does."""\n{indented(FILLER)}\n'
    found = documents(f"class Outer:\n{indented(inner)}\n")
    assert found == {"m.Outer.Inner": f"class Inner:\n{indented(FILLER)}\n"}


def test_code_on_the_lines_of_the_docstring_stays():
    statements = "; ".join(f"é{number} = {number}" for number in range(40))
    found = documents(f'class Ä: "Öne line that says it"; {statements}\nafter = 1\n')
    assert found == {"m.Ä": f"class Ä: ; {statements}\n"}


@pytest.mark.parametrize(
    "docstring",
    [
        pytest.param("Too short here.", id="trivial"),
        pytest.param("Codec cp1 generated from 'A.TXT' with gencodec.py.", id="generated"),
        pytest.param("value_1 = 1\nvalue_2 = 2", id="repeated in the document"),
    ],
)
def test_docstrings_that_would_mislead_are_left_out(docstring):
    assert documents(f'"""{docstring}"""\n{FILLER}\n') == {}


def test_no_document_holds_its_summary(corpus):
    for example in corpus:
        assert example.summary not in " ".join(example.document.split()), example.name


def test_module_documents_are_programs_without_that_docstring(corpus):
    for example in corpus:
        if example.kind == "module":
            docstring = ast.get_docstring(ast.parse(example.document))
            assert docstring != example.summary, example.name


def test_corpus_is_large_and_its_documents_are_long(corpus):
    # The lower limits hold for every Python version supported; 3.11 has 335 and 856.
    modules = [len(example.document) for example in corpus if example.kind == "module"]
    classes = [len(example.document) for example in corpus if example.kind == "class"]
    assert len(modules) > 200
    assert len(classes) > 500
    assert statistics.median(modules) > 5_000
    assert max(modules) > 150_000


def test_every_summary_occurs_once(corpus):
    summaries = [" ".join(example.summary.split()) for example in corpus]
    assert len(set(summaries)) == len(summaries)


def test_splits_share_no_module_and_classes_follow_theirs(splits):
    modules = {split: set(data["module"]) for split, data in splits.items()}
    assert all(modules.values())
    assert not modules["train"] & modules["validation"]
    assert not modules["train"] & modules["test"]
    assert not modules["validation"] & modules["test"]
    for split, data in splits.items():
        assert {split_of(module) for module in data["module"]} == {split}
        assert {"module", "class"} == set(data["kind"])


def test_split_of_a_module_is_the_same_on_every_machine():
    known = {"argparse": "train", "json.decoder": "train", "re": "validation", "ast": "test"}
    assert {name: split_of(name) for name in known} == known


def test_order_is_fixed_and_mixes_modules(splits):
    names = list(splits["train"]["name"])
    assert names != sorted(names)
    assert names == list(stdlib_splits()["train"]["name"])


def test_sources_for_language_modelling_use_the_same_splits(splits):
    sources = stdlib_sources()
    assert {split for split, texts in sources.items() if texts} == set(splits)
    training_text = "".join(sources["train"])
    held_out = max(splits["test"]["document"], key=len)
    assert held_out[-2_000:] not in training_text


def test_directory_without_python_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected modules with docstrings"):
        stdlib_examples(tmp_path)
