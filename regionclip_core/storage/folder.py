"""A folder at a local path or any fsspec URL, in which a file appears whole or not at all.

A file is written to a temporary name, flushed to disk and renamed; on object stores one put takes the place of the
rename. JSON is written canonically: equal values give equal bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from regionclip_core.storage.local_files import TEMPORARY, full_disk_named, remove_of_the_dead, scratch_file
from regionclip_core.storage.locations import remote

REQUESTS = 32
"""Requests that one process sends to an object store at a time."""
_CHUNK = 1 << 20
# On these a put is atomic: the object is there whole or not at all. Elsewhere a rename has to follow.
_ATOMIC_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})


# ---------------------------------------------------------------- canonical JSON


def canonical(value: Any, where: str = "value") -> Any:
    """Reduce `value` to plain JSON types, or refuse.

    dict (string keys), list, tuple, str, bool, int, finite float and None pass; everything else raises ValueError
    with the dotted path of the culprit, since its text could differ between two equal runs.
    """
    if value is None or isinstance(value, (str, bool, int)):
        # bool and int subclasses (enums) would print as themselves: only the exact types are stable.
        if value is None or type(value) in (str, bool, int):
            return value
    elif isinstance(value, float) and type(value) is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{where}: {value} has no canonical JSON form; use null or a finite number")
        return value
    elif isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where}: key {key!r} is a {type(key).__name__}; only string keys are canonical")
        return {key: canonical(item, f"{where}.{key}") for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(
        f"{where}: a {type(value).__module__}.{type(value).__qualname__} has no canonical form; "
        "expected dict, list, str, int, float, bool or None. Convert it first (item(), tolist(), str(), sorted())"
    )


def canonical_json(value: Any, where: str = "value", indent: int | None = None) -> bytes:
    """UTF-8 JSON with sorted keys; equal values give equal bytes. Raises ValueError as `canonical` does."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        canonical(value, where),
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        separators=separators,
        indent=indent,
    )
    return text.encode() + b"\n"


# ---------------------------------------------------------------- folders

HALF_REMOVED = "half-removed"
"""Mark in an artifact that is being removed; its last file."""


@dataclass(frozen=True)
class FileRecord:
    """One committed file: name inside its folder, size in bytes, sha256 in hex."""

    name: str
    bytes: int
    sha256: str


class Folder:
    """One folder at a local path or any fsspec URL. Cheap to make and to pickle; it need not exist yet."""

    def __init__(self, url: str) -> None:
        self.url = str(url).removeprefix("file://").rstrip("/") or "/"
        self.written: list[FileRecord] = []
        """Files that this object wrote, in the order of their (last) writing."""

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "written": self.written}

    @property
    def is_local(self) -> bool:
        """True for a plain path, false for a URL with a protocol."""
        return "://" not in self.url

    def child(self, name: str) -> Folder:
        """The sub-folder `name`. Its writes are its own: they are no part of this folder's `written`."""
        return Folder(f"{self.url}/{name}" if self.url != "/" else f"/{name}")

    def path(self, name: str) -> str:
        """Path or URL of the file `name`."""
        return f"{self.url}/{name}"

    def _entries(self, sizes: bool = False) -> list[tuple[str, bool, int]]:
        """(name, is a folder, bytes) of everything inside; a folder that is not there is empty.

        Local sizes cost a system call a file: they are 0 unless asked for.
        """
        if self.is_local:
            try:
                with os.scandir(self.url) as entries:
                    return [(e.name, e.is_dir(), e.stat().st_size if sizes else 0) for e in entries]
            except FileNotFoundError:
                return []
        try:
            with remote(self.url) as (fs, root):
                fs.invalidate_cache()  # another process may have written since the last listing
                found = fs.ls(root, detail=True)
        except FileNotFoundError:
            return []
        rows = [(e["name"].rstrip("/").rsplit("/", 1)[-1], e["type"] == "directory", e.get("size") or 0) for e in found]
        return [row for row, e in zip(rows, found, strict=True) if e["name"].strip("/") != root.strip("/")]

    def names(self, *prefixes: str) -> list[str]:
        """Sorted names of the files inside, temporary ones left out; empty when the folder is not there.

        `prefixes`: only names that begin with one of these, none of which begins another. An object store, which gives
        1,000 names an answer, is asked for each of them by itself, 32 at a time.
        """
        if prefixes and not self.is_local:
            with remote(self.url) as (fs, root):
                if _takes(fs, "_find", "prefix"):  # S3, GCS and Azure choose names by their beginning themselves
                    return _names_by_prefix(fs, root, prefixes)
        files = (n for n, is_folder, _ in self._entries() if not is_folder and not n.startswith(TEMPORARY))
        return sorted(n for n in files if n.startswith(prefixes or ""))

    def sizes(self) -> dict[str, int]:
        """Bytes of each file inside, by name."""
        entries = sorted(self._entries(sizes=True))
        return {n: size for n, is_folder, size in entries if not is_folder and not n.startswith(TEMPORARY)}

    def folders(self) -> list[str]:
        """Sorted names of the folders inside."""
        return sorted(n for n, is_folder, _ in self._entries() if is_folder)

    def exists(self, name: str) -> bool:
        """Whether the file or sub-folder `name` is there."""
        if self.is_local:
            return os.path.exists(self.path(name))
        with remote(self.url) as (fs, root):
            fs.invalidate_cache()
            return bool(fs.exists(f"{root}/{name}"))

    def open(self, name: str) -> BinaryIO:
        """Open for reading, seekable. Raises FileNotFoundError."""
        if self.is_local:
            return open(self.path(name), "rb")
        with remote(self.url) as (fs, root):
            return cast(BinaryIO, fs.open(f"{root}/{name}", "rb"))

    @contextmanager
    def open_table(self, name: str) -> Iterator[BinaryIO]:
        """Open a Parquet file for reading. What Arrow says of a damaged one names neither the file nor a way out.

        Raises:
            FileNotFoundError; ValueError: Arrow can't read it in the block.
        """
        with self.open(name) as stream:
            try:
                yield stream
            except (ValueError, OSError) as error:
                # Arrow's own OSErrors have no number; a remote store's may have none either.
                of_arrow = self.is_local and isinstance(error, OSError) and error.errno is None
                if not of_arrow and not type(error).__module__.startswith("pyarrow"):
                    raise
                what = " ".join(str(error).split())
                raise ValueError(
                    f"{self.path(name)} can't be read as a table: {what}. `regionclip verify` says what is damaged"
                ) from error

    def read_bytes(self, name: str) -> bytes:
        """Content of the file `name`."""
        if not self.is_local:
            with remote(self.url) as (fs, root):
                return bytes(fs.cat_file(f"{root}/{name}"))
        with self.open(name) as f:
            return f.read()

    def _read_small(self, name: str) -> bytes:
        """Content of a small remote file in one request; S3's client else asks for the size first."""
        with remote(self.url) as (fs, root):
            at_once = {"max_concurrency": 1} if _takes(fs, "_cat_file", "max_concurrency") else {}
            return bytes(fs.cat_file(f"{root}/{name}", **at_once))

    def read_json(self, name: str) -> Any:
        """Content of the JSON file `name`. Raises ValueError with the path when it does not parse."""
        data = self.read_bytes(name) if self.is_local else self._read_small(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise ValueError(f"{self.path(name)}: not valid JSON ({error}); delete it or restore it") from error

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Write `name` atomically: the block gets a seekable binary file, `name` appears when the block is left.

        On an exception nothing appears and the temporary file is removed. The file's record is added to `written`.
        """
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no plain file name; use child() for sub-folders")
        fd, temporary = self._temporary(name)
        try:
            with full_disk_named(self.path(name) if self.is_local else temporary), os.fdopen(fd, "wb") as f:
                yield cast(BinaryIO, f)
                f.flush()
                os.fsync(f.fileno())
            record = _file_record(Path(temporary), name)
            self._publish(temporary, name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        self.written = [w for w in self.written if w.name != name] + [record]

    def _temporary(self, name: str) -> tuple[int, str]:
        """An open temporary file: beside its target when local, so that the rename stays on one file system."""
        if not self.is_local:
            return scratch_file("uploads")
        os.makedirs(self.url, exist_ok=True)
        prefix = f"{TEMPORARY}{os.getpid()}-"
        fd, temporary = tempfile.mkstemp(prefix=prefix, suffix=f"-{name}"[-40:], dir=self.url)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; artifacts follow the umask
        return fd, temporary

    def _publish(self, temporary: str, name: str) -> None:
        if self.is_local:
            os.replace(temporary, self.path(name))
            _sync_directory(self.url)
            return
        with remote(self.url) as (fs, root):
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
            if protocols & _ATOMIC_PUT:
                fs.put_file(temporary, f"{root}/{name}")
            else:
                # mkstemp's name, not the pid alone: the same shard may be done twice, in containers with equal pids.
                staged = f"{root}/{os.path.basename(temporary)}-{name}"
                fs.makedirs(root, exist_ok=True)
                fs.put_file(temporary, staged)
                fs.mv(staged, f"{root}/{name}")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write `data` atomically."""
        with self.write(name) as f:
            f.write(data)

    def write_json(self, name: str, obj: Any, indent: int | None = None) -> None:
        """Write canonical JSON atomically. Raises ValueError for what has no canonical form (NaN, numpy scalars)."""
        self.write_bytes(name, canonical_json(obj, name, indent))

    def remove(self, name: str) -> None:
        """Remove the file `name`; no error when it is not there."""
        with suppress(FileNotFoundError):
            if self.is_local:
                os.unlink(self.path(name))
            else:
                with remote(self.url) as (fs, root):
                    fs.rm_file(f"{root}/{name}")

    def remove_all(self) -> None:
        """Remove the folder and everything inside.

        The manifest and the records go first: in a half-removed artifact no record vouches for a file that is gone.
        Without the manifest and the plan it counts as none; a mark tells what is left from a person's own files.
        """
        if self.exists("manifest.json") or self.exists("plan.json"):
            with suppress(OSError):  # a full disk: all the more reason to remove
                self.write_bytes(HALF_REMOVED, b"")
        self.remove("manifest.json")
        self.remove("plan.json")
        commits = [name for name in self.names() if name.endswith(".json")]
        if self.is_local:
            for name in commits:
                self.remove(name)
            while os.path.exists(self.url):  # again where somebody else removed or wrote a file meanwhile
                with suppress(FileNotFoundError):
                    for entry in sorted(os.scandir(self.url), key=lambda entry: entry.name == HALF_REMOVED):
                        if entry.is_dir(follow_symlinks=False):
                            shutil.rmtree(entry.path)
                        else:
                            os.unlink(entry.path)
                    os.rmdir(self.url)
            return
        with remote(self.url) as (fs, root):
            fs.invalidate_cache()
            with suppress(FileNotFoundError):
                if commits:
                    fs.rm([f"{root}/{name}" for name in commits])
            with suppress(FileNotFoundError):
                if files := [path for path in fs.find(root) if not path.endswith(f"/{HALF_REMOVED}")]:
                    fs.rm(files)
            with suppress(FileNotFoundError):
                fs.rm(root, recursive=True)

    def remove_temporary(self) -> None:
        """Remove what killed writers left, here and on this machine. Only for the holder of the workspace's lock."""
        if not self.is_local:
            remove_of_the_dead("uploads")
            if self.url.split("://")[0] in _ATOMIC_PUT:
                return
        for name, is_folder, _ in self._entries():
            if not is_folder and name.startswith(TEMPORARY):
                self.remove(name)


def _takes(fs: Any, method: str, argument: str) -> bool:
    """Whether a file system's method knows an argument that not all of them have."""
    found = getattr(type(fs), method, None)
    return found is not None and argument in inspect.signature(found).parameters


def _names_by_prefix(fs: Any, root: str, prefixes: Sequence[str]) -> list[str]:
    """Sorted names of the files in the folder `root` that begin with one of the prefixes."""
    from concurrent.futures import ThreadPoolExecutor

    def one(prefix: str) -> list[str]:
        with suppress(FileNotFoundError):  # what some stores say of a folder without such a file
            below = (path[len(root) + 1 :] for path in fs.find(root, prefix=prefix))
            return [name for name in below if "/" not in name and name.startswith(prefix)]
        return []

    fs.invalidate_cache()  # another process may have written since the last listing
    with ThreadPoolExecutor(max_workers=min(REQUESTS, len(prefixes))) as threads:
        return sorted(name for names in threads.map(one, prefixes) for name in names)


def _file_record(path: Path, name: str) -> FileRecord:
    return FileRecord(name, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a local file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def stream_sha256(stream: BinaryIO) -> tuple[int, str]:
    """Bytes and sha256 (hex) of an open binary stream, read to its end."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


@cache
def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_directory(path: str) -> None:
    """Make the rename itself durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
