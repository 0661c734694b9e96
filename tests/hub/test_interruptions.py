"""A push or pull that breaks off leaves nothing half-written; a second try completes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub.conftest import OWNER, OWNER_TOKEN, USERS, Visit, Visitor
from tests.hub.repositories import Storage
from tests.hub.server import HubServer

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


def push_until_it_dies(server: HubServer, visit: Visitor, version: int) -> Visit:
    """The server dies when it has one shard and half of the next."""
    server.die_after = 45_000
    code = f"{BUILD}\nreport(pushed=attempt(push, {version}))"
    seen = visit(server, code, home="author", token=OWNER_TOKEN)
    assert server.dead.is_set()
    assert seen["pushed"].startswith(("RuntimeError: Error while uploading", "ConnectError"))
    return seen


def test_a_server_that_dies_in_mid_upload_keeps_the_version_before(
    mortal: HubServer, own_storage: Storage, visit: Visitor
) -> None:
    push_until_it_dies(mortal, visit, 1)
    assert own_storage.repositories[NAME].commit_at("main").files.keys() == {".gitattributes"}

    with HubServer(own_storage, USERS, mortal.port) as second:
        code = f"""{BUILD}
report(before=attempt(load), one=total(build(1)), two=total(build(2)))
push(1)
report(after=total(load()))
"""
        seen = visit(second, code, home="author", token=OWNER_TOKEN)
        assert "must have a `config.json`" in seen["before"]
        assert seen["after"] == seen["one"] != seen["two"]
        shards = len(own_storage.objects)
        push_until_it_dies(second, visit, 2)
        assert len(own_storage.objects) >= shards

    with HubServer(own_storage, USERS, mortal.port) as third:
        code = f"""{BUILD}
report(before=total(load()))
push(2)
report(after=total(load()))
"""
        again = visit(third, code, home="another-machine", token=OWNER_TOKEN)
        assert again["before"] == seen["one"]
        assert again["after"] == seen["two"]


def test_a_download_that_breaks_off_resumes_or_leaves_nothing_to_load(
    mortal: HubServer, visit: Visitor
) -> None:
    code = f"{BUILD}\npush(1)\nreport(total=total(build(1)))"
    pushed = visit(mortal, code, home="author", token=OWNER_TOKEN)

    # More often than the client tries, but for the small files.
    mortal.cut_downloads = 1000
    code = f"""{BUILD}
report(cut=attempt(load), offline=attempt(load, local_files_only=True))
"""
    seen = visit(mortal, code, home="reader")
    assert "Error" in seen["cut"]
    assert "Error" in seen["offline"]

    mortal.cut_downloads = 3
    mortal.log.clear()
    code = f"{BUILD}\nreport(total=total(load()))"
    assert visit(mortal, code, home="reader")["total"] == pushed["total"]
    assert mortal.cut_downloads == 0
