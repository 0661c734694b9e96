"""The Hub of the tests keeps the promises of the real one, as its own client sees them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import close_session, get_session

from tests.hub.conftest import OWNER, OWNER_TOKEN, STRANGER_TOKEN
from tests.hub.repositories import Storage
from tests.hub.server import HubServer

LARGE = bytes(range(256)) * 400

# The client's own way of uploading, since it went over to another HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def api(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The owner's client, with short waits between attempts."""
    sleep = time.sleep
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.02)))
    yield HfApi(endpoint=hub.url, token=OWNER_TOKEN)
    close_session()


def push(api: HfApi, name: str, path: str, content: bytes, **options: str) -> str:
    api.create_repo(name, exist_ok=True)
    commit = api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name, **options)
    return str(commit.oid)


def test_small_and_large_files_come_back(api: HfApi, hub: HubServer, tmp_path: Path) -> None:
    name = f"{OWNER}/both"
    push(api, name, "notes/a.txt", b"small")
    push(api, name, "model.safetensors", LARGE)
    folder = Path(api.snapshot_download(name, cache_dir=tmp_path))
    assert (folder / "notes" / "a.txt").read_bytes() == b"small"
    assert (folder / "model.safetensors").read_bytes() == LARGE
    oid = hashlib.sha256(LARGE).hexdigest()
    assert (folder / "model.safetensors").resolve().name == oid
    assert f"PUT /store/{oid}" in hub.log
    assert not any(line.startswith("PUT") and "notes" in line for line in hub.log)


def test_large_files_go_up_in_parts_when_asked(
    api: HfApi, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "part_size", 30_000)
    name, content = f"{OWNER}/parts", LARGE[::-1]
    push(api, name, "model.safetensors", content)
    oid = hashlib.sha256(content).hexdigest()
    parts = [line for line in hub.log if line.startswith(f"PUT /store/{oid}/")]
    assert parts == [f"PUT /store/{oid}/{n}" for n in (1, 2, 3, 4)]
    path = api.hf_hub_download(name, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == content


def test_an_object_must_be_what_its_name_says(api: HfApi, hub: HubServer) -> None:
    oid = hashlib.sha256(b"right").hexdigest()
    response = get_session().put(f"{hub.store_url}/{oid}", content=b"wrong")
    assert response.status_code == 400
    assert oid not in hub.storage.objects


def test_a_commit_that_names_a_missing_object_changes_nothing(api: HfApi, hub: HubServer) -> None:
    name = f"{OWNER}/dangling"
    api.create_repo(name)
    before = api.list_repo_files(name)
    lines = [
        '{"key": "header", "value": {"summary": "x"}}',
        '{"key": "file", "value": {"path": "a.txt", "content": "YQ=="}}',
        '{"key": "lfsFile", "value": {"path": "b.bin", "oid": "%s", "size": 3}}' % ("0" * 64),
    ]
    response = get_session().post(
        f"{hub.url}/api/models/{name}/commit/main",
        content="\n".join(lines).encode(),
        headers={"Authorization": f"Bearer {OWNER_TOKEN}"},
    )
    assert response.status_code == 400
    assert api.list_repo_files(name) == before


def test_revisions_name_states(api: HfApi, tmp_path: Path) -> None:
    name = f"{OWNER}/history"
    first = push(api, name, "a.txt", b"one")
    api.create_tag(name, tag="v1")
    api.create_branch(name, branch="next")
    push(api, name, "a.txt", b"two")
    push(api, name, "a.txt", b"three", revision="next")
    expected = {"main": b"two", "v1": b"one", "next": b"three", first: b"one", first[:7]: None}
    for revision, content in expected.items():
        if content is None:
            with pytest.raises(RevisionNotFoundError):
                api.hf_hub_download(name, "a.txt", revision=revision, cache_dir=tmp_path)
            continue
        path = api.hf_hub_download(name, "a.txt", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content
    refs = api.list_repo_refs(name)
    assert [ref.name for ref in refs.branches] == ["main", "next"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", first)]


def test_a_commit_deletes_and_refuses_an_outdated_parent(api: HfApi) -> None:
    name = f"{OWNER}/edits"
    first = push(api, name, "a.txt", b"one")
    api.create_commit(
        name,
        [CommitOperationDelete("a.txt"), CommitOperationAdd("d/b.txt", b"two")],
        commit_message="move",
    )
    assert api.list_repo_files(name) == [".gitattributes", "d/b.txt"]
    addition = CommitOperationAdd("c.txt", b"three")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(name, [addition], commit_message="late", parent_commit=first)
    api.create_commit(name, [CommitOperationDelete("d/")], commit_message="empty")
    assert api.list_repo_files(name) == [".gitattributes"]


def test_what_is_missing_is_named(api: HfApi, tmp_path: Path) -> None:
    name = f"{OWNER}/little"
    push(api, name, "a.txt", b"one")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(name, "b.txt", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(name, "a.txt", revision="v9", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download(f"{OWNER}/nothing", "a.txt", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(name)


def test_a_private_repository_is_its_owners_alone(
    api: HfApi, hub: HubServer, tmp_path: Path
) -> None:
    name = f"{OWNER}/secret"
    api.create_repo(name, private=True)
    push(api, name, "a.txt", b"one")
    assert api.model_info(name).private
    for token in (STRANGER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name, token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(name, "a.txt", token=token, cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        api.model_info(name, token="hf_wrong")


def test_only_the_owner_writes(api: HfApi, hub: HubServer) -> None:
    name = f"{OWNER}/public"
    push(api, name, "a.txt", b"one")
    stranger = HfApi(endpoint=hub.url, token=STRANGER_TOKEN)
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.upload_file(path_or_fileobj=b"two", path_in_repo="a.txt", repo_id=name)
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.create_repo(f"{OWNER}/mine")
    assert api.whoami()["name"] == OWNER


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=0-9", 206, LARGE[:10]),
        (f"bytes={len(LARGE) - 5}-", 206, LARGE[-5:]),
        (f"bytes={len(LARGE)}-", 416, b""),
    ],
    ids=["start", "end", "beyond"],
)
def test_ranges_are_served(
    api: HfApi, hub: HubServer, wanted: str, status: int, content: bytes
) -> None:
    name = f"{OWNER}/ranges"
    push(api, name, "model.safetensors", LARGE)
    address = f"{hub.url}/{name}/resolve/main/model.safetensors"
    response = get_session().get(address, headers={"Range": wanted})
    assert (response.status_code, response.content) == (status, content)


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    api: HfApi, hub: HubServer, tmp_path: Path
) -> None:
    name = f"{OWNER}/flaky"
    push(api, name, "model.safetensors", LARGE)
    hub.log.clear()
    hub.cut_downloads = 3
    path = api.hf_hub_download(name, "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    assert hub.cut_downloads == 0
    assert sum("GET /store/" in line for line in hub.log) == 4


def test_a_new_server_opens_what_the_dead_one_kept(
    api: HfApi, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {OWNER_TOKEN: OWNER}
    name, content = f"{OWNER}/survivor", LARGE + b"!"
    first = HubServer(storage, users)
    client = HfApi(endpoint=first.url, token=OWNER_TOKEN)
    push(client, name, "a.txt", b"one")
    first.die_after = len(content) // 2
    with pytest.raises(RuntimeError, match=r"uploading 'model\.safetensors'"):
        push(client, name, "model.safetensors", content)
    assert first.dead.is_set()
    assert hashlib.sha256(content).hexdigest() not in storage.objects
    with HubServer(storage, users, first.port):
        assert client.list_repo_files(name) == [".gitattributes", "a.txt"]
        push(client, name, "model.safetensors", content)
        assert client.list_repo_files(name)[-1] == "model.safetensors"
