"""A push or pull that breaks off leaves nothing half-written; a second try completes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import close_session

from tests.hub.conftest import OWNER, OWNER_TOKEN, USERS, Visitor
from tests.hub.repositories import Storage
from tests.hub.server import HubServer
from tests.models.builders import HEAD_OF

NAME = f"{OWNER}/interrupted"

# Four shards of some 20 kB; `version` scales the weights.
BUILD = f"""
import torch
from reformer_hf import ReformerConfig, ReformerForCausalLM
ids = torch.arange(3, 43)[None]
def total(model):
    with torch.no_grad():
        return float(model.eval()(ids).logits.abs().sum())
def build(version):
    torch.manual_seed(0)
    config = ReformerConfig(
        hidden_size=32, num_attention_heads=2, attention_head_size=16, hash_seed=1,
        initializer_range=0.2 * version, attn_layers=["local", "lsh"],
    )
    return ReformerForCausalLM(config)
def push(version):
    build(version).push_to_hub("{NAME}", max_shard_size="30KB")
def load(**options):
    return ReformerForCausalLM.from_pretrained("{NAME}", **options)
def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options) or "done"
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
"""


@pytest.fixture
def own_storage() -> Storage:
    return Storage()


@pytest.fixture
def mortal(own_storage: Storage) -> Iterator[HubServer]:
    with HubServer(own_storage, USERS) as server:
        yield server


def test_a_server_that_dies_in_mid_upload_keeps_the_version_before(
    mortal: HubServer, own_storage: Storage, visit: Visitor
) -> None:
    died = ("RuntimeError: Error while uploading", "ConnectError")

    # With one shard and half of the next.
    mortal.die_after = 45_000
    code = f"{BUILD}\nreport(push=attempt(push, 1))"
    assert visit(mortal, code, home="author", token=OWNER_TOKEN)["push"].startswith(died)
    assert mortal.dead.is_set()
    assert own_storage.repositories[NAME].commit_at("main").files.keys() == {".gitattributes"}

    with HubServer(own_storage, USERS, mortal.port) as second:
        second.die_after, second.spared_commits = 45_000, 1
        code = f"""{BUILD}
report(one=total(build(1)), two=total(build(2)), before=attempt(load))
push(1)
report(after=total(load()), push=attempt(push, 2))
"""
        seen = visit(second, code, home="author", token=OWNER_TOKEN)
        assert "`config.json` of" in seen["before"]
        assert seen["after"] == seen["one"] != seen["two"]
        assert seen["push"].startswith(died)
        assert second.dead.is_set()

    with HubServer(own_storage, USERS, mortal.port) as third:
        code = f"""{BUILD}
report(before=total(load()))
push(2)
report(after=total(load()))
"""
        again = visit(third, code, home="another-machine", token=OWNER_TOKEN)
        assert (again["before"], again["after"]) == (seen["one"], seen["two"])


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client's own
def test_a_download_that_breaks_off_resumes_or_leaves_nothing_to_load(
    mortal: HubServer, visit: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    model = HEAD_OF["causal_lm"].build().eval()
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    client = HfApi(endpoint=mortal.url, token=OWNER_TOKEN)
    client.create_repo(NAME)
    client.upload_folder(repo_id=NAME, folder_path=tmp_path)
    close_session()

    # More often than the client takes up one download again, so that calls fail before one works.
    mortal.cut_downloads = 150
    code = f"""{BUILD}
failures = []
while not isinstance(outcome := attempt(load), ReformerForCausalLM):
    failures += [outcome, attempt(load, local_files_only=True)]
report(failures=failures, total=total(outcome))
"""
    seen = visit(mortal, code, home="reader")
    assert mortal.cut_downloads == 0
    assert len(seen["failures"]) >= 2
    assert all("Error: " in failure for failure in seen["failures"])
    with torch.no_grad():
        expected = float(model(torch.arange(3, 43)[None]).logits.abs().sum())
    assert seen["total"] == pytest.approx(expected, rel=1e-6)
