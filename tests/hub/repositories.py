"""What a Hub keeps: repositories with their commits, and the contents of large files.

In memory. A server can die and another can open the same storage, as a Hub's database and object
store outlive the machine that answers requests.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field


class StorageError(Exception):
    """A request that the storage cannot fulfil: HTTP status, the Hub's error code, a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class StoredFile:
    """One version of a file: its bytes in git, or where they lie in the object store.

    Attributes:
        oid: what git calls it (SHA-1), or the SHA-256 of a large file. Serves as ETag.
        size: in bytes.
        content: `None` for a large file.
    """

    oid: str
    size: int
    content: bytes | None

    @staticmethod
    def regular(content: bytes) -> StoredFile:
        """A file kept in git."""
        header = b"blob %d\0" % len(content)
        return StoredFile(hashlib.sha1(header + content).hexdigest(), len(content), content)


@dataclass(frozen=True)
class Commit:
    """A state of all files."""

    oid: str
    title: str
    files: dict[str, StoredFile]


@dataclass
class Repository:
    """Commits, and the branches and tags that name some of them."""

    owner: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a hash names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise StorageError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def add(self, branch: str, title: str, files: dict[str, StoredFile]) -> Commit:
        """A new commit on a branch."""
        parent = self.branches.get(branch, "")
        listing = sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(f"{parent}{title}{listing}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return self.commits[oid]


class Storage:
    """All repositories, and the object store: SHA-256 -> bytes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, bytes]] = {}

    def create(self, name: str, private: bool) -> None:
        """A repository with one commit, as the Hub makes it."""
        with self.lock:
            if name in self.repositories:
                raise StorageError(409, "", "You already created this model repo")
            repository = Repository(name.split("/")[0], private)
            attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            files = {".gitattributes": StoredFile.regular(attributes)}
            repository.add("main", "initial commit", files)
            self.repositories[name] = repository

    def put_object(self, oid: str, content: bytes) -> None:
        """Keep the content of a large file, if it is what its name says."""
        if hashlib.sha256(content).hexdigest() != oid:
            raise StorageError(400, "", f"content does not have the SHA-256 {oid}")
        with self.lock:
            self.objects[oid] = content

    def put_part(self, oid: str, number: int, content: bytes) -> str:
        """Keep a part until its object is complete; returns its ETag."""
        with self.lock:
            self._parts.setdefault(oid, {})[number] = content
        return hashlib.md5(content).hexdigest()

    def join_parts(self, oid: str, etags: list[str]) -> None:
        """Make an object of its parts."""
        with self.lock:
            parts = [self._parts.get(oid, {}).get(n + 1, b"") for n in range(len(etags))]
            if etags != [hashlib.md5(part).hexdigest() for part in parts]:
                raise StorageError(400, "", "a part is missing or was replaced")
            self.put_object(oid, b"".join(parts))
            del self._parts[oid]

    def content(self, file: StoredFile) -> bytes:
        """The bytes of a file."""
        return self.objects[file.oid] if file.content is None else file.content

    def large_file(self, oid: str, size: int) -> StoredFile:
        """A pointer to an object, which must be there in full."""
        if len(self.objects.get(oid, b"")) != size or oid not in self.objects:
            raise StorageError(
                400, "", f"LFS pointer pointed to a file that does not exist: {oid} ({size} bytes)"
            )
        return StoredFile(oid, size, None)
