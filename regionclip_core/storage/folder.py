"""A folder at a local path or any fsspec URL, in which a file appears whole or not at all.

A file is written to a temporary name, flushed to disk and renamed; on object stores one put takes the place of the
rename. JSON is written canonically: equal values give equal bytes.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from regionclip_core.storage.local_files import TEMPORARY, full_disk_named, remove_of_the_dead, scratch
from regionclip_core.storage.locations import remote

S = TypeVar("S")
T = TypeVar("T")

REQUESTS = 32
"""Requests that one process sends to an object store at a time."""
# On these a put is atomic: the object is there whole or not at all. Elsewhere a rename has to follow.
_ATOMIC_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})


# ---------------------------------------------------------------- canonical JSON


def canonical_json(value: Any, where: str = "value", indent: int | None = None) -> bytes:
    """Return UTF-8 JSON with sorted keys; equal values give equal bytes.

    Raises ValueError with the dotted path of anything whose text could differ between two equal runs: only dict (text
    keys), list, tuple, str, bool, int, finite float and None pass, and no subclasses of them.
    """
    separators = (",", ":") if indent is None else (",", ": ")
    plain = _plain(value, where)
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=separators, indent=indent).encode() + b"\n"


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ValueError(f"{where}: key {key!r} is a {type(key).__name__}; only text keys are canonical")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError(
        f"{where}: {value!r}, a {type(value).__module__}.{type(value).__qualname__}, has no canonical form; expected "
        "dict, list, str, int, finite float, bool or None. Convert it first (item(), tolist(), str(), sorted())"
    )


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

    @property
    def is_local(self) -> bool:
        """True for a plain path, false for a URL with a protocol."""
        return "://" not in self.url

    def child(self, name: str) -> Folder:
        """Return the sub-folder `name`. What it writes is no part of this folder's `written`."""
        return Folder(f"{self.url}/{name}" if self.url != "/" else f"/{name}")

    def path(self, name: str) -> str:
        """Path or URL of the file `name`."""
        return f"{self.url}/{name}"

    def _entries(self) -> list[tuple[str, bool]]:
        """(name, is a folder) of everything inside; nothing where there is no such folder."""
        with suppress(FileNotFoundError):
            if self.is_local:
                with os.scandir(self.url) as entries:
                    return [(entry.name, entry.is_dir()) for entry in entries]
            with remote(self.url) as (fs, root):
                fs.invalidate_cache()  # another process may have written since the last listing
                found = [(e["name"].strip("/"), e["type"] == "directory") for e in fs.ls(root, detail=True)]
                return [(path.rsplit("/", 1)[-1], is_folder) for path, is_folder in found if path != root.strip("/")]
        return []

    def names(self, *prefixes: str) -> list[str]:
        """Sorted names of the files inside, without temporary ones; empty when the folder is not there.

        `prefixes`: only names that begin with one of these; none of them may be the beginning of another. An object
        store, which gives 1,000 names per answer, gets one request per prefix, 32 at a time.
        """
        if prefixes and not self.is_local:
            with remote(self.url) as (fs, root):
                if _takes(fs, "_find", "prefix"):  # S3, GCS and Azure choose names by their beginning themselves

                    def below(prefix: str) -> list[str]:
                        with suppress(FileNotFoundError):  # the answer of some stores if there is no such file
                            return [path[len(root) + 1 :] for path in fs.find(root, prefix=prefix)]
                        return []

                    fs.invalidate_cache()
                    found = [name for names in self.at_once(below, prefixes) for name in names]
                    return sorted(name for name in found if "/" not in name and name.startswith(prefixes))
        names = (n for n, is_folder in self._entries() if not is_folder and not n.startswith(TEMPORARY))
        return sorted(name for name in names if name.startswith(prefixes or ""))

    def at_once(self, call: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield `call` of each item, in order; 32 requests at a time where the folder is remote."""
        if self.is_local:
            yield from map(call, items)
            return
        from concurrent.futures import ThreadPoolExecutor  # which `status` of a local workspace does without

        with ThreadPoolExecutor(REQUESTS) as threads:
            yield from threads.map(call, items)

    def folders(self) -> list[str]:
        """Sorted names of the folders inside."""
        return sorted(name for name, is_folder in self._entries() if is_folder)

    def exists(self, name: str) -> bool:
        """Return whether the file or sub-folder `name` is there."""
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
        """Open a Parquet file for reading.

        Raises:
            FileNotFoundError.
            ValueError: Arrow can't read it in the block. Arrow's own message names neither the file nor what to do.
        """
        with self.open(name) as stream:
            try:
                yield stream
            except (ValueError, OSError) as error:
                # Arrow's own OSErrors have no number; a remote store's may have none either.
                of_arrow = self.is_local and isinstance(error, OSError) and error.errno is None
                if not of_arrow and not type(error).__module__.startswith("pyarrow"):
                    raise
                raise ValueError(
                    f"{self.path(name)} can't be read as a table: {' '.join(str(error).split())}. `regionclip verify` "
                    "says what is damaged"
                ) from error

    def read_bytes(self, name: str, small: bool = False) -> bytes:
        """Return the content of the file `name`. `small`: in one request; S3's client would ask for the size first."""
        if self.is_local:
            with self.open(name) as f:
                return f.read()
        with remote(self.url) as (fs, root):
            one = {"max_concurrency": 1} if small and _takes(fs, "_cat_file", "max_concurrency") else {}
            return bytes(fs.cat_file(f"{root}/{name}", **one))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end` of the file `name`, in one request; fewer where it ends before."""
        if self.is_local:
            with self.open(name) as f:
                f.seek(start)
                return f.read(end - start)
        with remote(self.url) as (fs, root):
            return bytes(fs.cat_file(f"{root}/{name}", start=start, end=end))

    def read_json(self, name: str) -> Any:
        """Content of the JSON file `name`. Raises ValueError with the path when it does not parse."""
        data = self.read_bytes(name, small=True)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:  # the latter for thousands of lists inside each other
            raise ValueError(f"{self.path(name)}: not valid JSON ({error}); delete it or restore it") from error

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Write `name` atomically: the block gets a seekable binary file, `name` appears when the block is left.

        On an exception nothing appears and the temporary file is removed. The file's record is added to `written`.
        """
        if "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no plain file name; use child() for sub-folders")
        if self.is_local:  # beside its target, so that the rename stays on one file system
            os.makedirs(self.url, exist_ok=True)
        folder = self.url if self.is_local else scratch("uploads")
        fd, temporary = tempfile.mkstemp(prefix=f"{TEMPORARY}{os.getpid()}-", suffix=f"-{name}"[-40:], dir=folder)
        try:
            if self.is_local:
                with suppress(PermissionError):  # a file system without modes, such as exFAT
                    os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; artifacts follow the umask
            with full_disk_named(self.path(name) if self.is_local else temporary), os.fdopen(fd, "wb") as f:
                yield cast(BinaryIO, f)
                f.flush()
                os.fsync(f.fileno())
            record = FileRecord(name, os.path.getsize(temporary), file_sha256(Path(temporary)))
            self._publish(temporary, name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        self.written = [w for w in self.written if w.name != name] + [record]

    def _publish(self, temporary: str, name: str) -> None:
        if self.is_local:
            os.replace(temporary, self.path(name))
            fd = os.open(self.url, os.O_RDONLY)
            try:
                os.fsync(fd)  # makes the rename itself durable
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # what network shares answer
                    raise
            finally:
                os.close(fd)
            return
        with remote(self.url) as (fs, root):
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
            if protocols & _ATOMIC_PUT:
                fs.put_file(temporary, f"{root}/{name}")
            else:
                staged = f"{root}/{os.path.basename(temporary)}"  # random: two workers may write the same file
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
        """Remove the folder and everything inside; of a link to a folder, that folder's content and the link.

        The manifest and the records go first, so that no record of a half-removed artifact names a missing file.
        Without manifest and plan a folder doesn't look like an artifact; a mark then says that it was one.
        """
        if self.is_local and os.path.islink(self.url) and not os.path.isdir(self.url):  # a link to nowhere or to a file
            os.unlink(self.url)
        if self.exists("manifest.json") or self.exists("plan.json"):
            with suppress(OSError):  # a full disk: all the more reason to remove
                self.write_bytes(HALF_REMOVED, b"")
        self.remove("manifest.json")
        self.remove("plan.json")
        commits = [name for name in self.names() if name.endswith(".json")]
        if self.is_local:
            for name in commits:
                self.remove(name)
            while os.path.lexists(self.url):  # again where somebody else removed or wrote a file meanwhile
                with suppress(FileNotFoundError):
                    for entry in sorted(os.scandir(self.url), key=lambda entry: entry.name == HALF_REMOVED):  # last
                        if entry.is_dir(follow_symlinks=False):
                            shutil.rmtree(entry.path)
                        else:
                            os.unlink(entry.path)
                    (os.unlink if os.path.islink(self.url) else os.rmdir)(self.url)
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
        """Remove what killed writers left, here and on this machine; the caller must hold the workspace's lock."""
        if not self.is_local:
            remove_of_the_dead("uploads")
            if self.url.split("://")[0] in _ATOMIC_PUT:
                return
        for name, is_folder in self._entries():
            if not is_folder and name.startswith(TEMPORARY):
                self.remove(name)


def _takes(fs: Any, method: str, argument: str) -> bool:
    """Return whether a file system's method knows an argument that not all of them have."""
    found = getattr(type(fs), method, None)
    return found is not None and argument in inspect.signature(found).parameters


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a local file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def stream_sha256(stream: BinaryIO) -> tuple[int, str]:
    """Return bytes and sha256 (hex) of an open binary stream."""
    digest = hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    return stream.seek(0, os.SEEK_END), digest


@cache
def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------- new folders


def writable_target(out: str) -> Path:
    """Return the path `out`. Raises ValueError unless it is, or can become, a local folder to write into."""
    if "://" in out:
        raise ValueError(f"--out {out}: expected a local folder; copy it to its URL afterwards")
    target = Path(out)
    nearest = next(place for place in (target, *target.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "can't be written to" if nearest.is_dir() else "is no folder"
        raise ValueError(f"--out {out}: expected a local folder, but {nearest} {why}; give another one with --out")
    return target


def free_target(out: str) -> Path:
    """Return the path `out`. Raises ValueError as `writable_target`, and unless it is new or an empty folder."""
    target = writable_target(out)
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"--out {out} is there already and not empty; give a new folder, or delete that one first")
    return target


def new_file(out: str, ending: str) -> Path:
    """Return the path `out`. Raises ValueError unless it is a new local file that ends so, in a writable place."""
    target = Path(out)
    if target.suffix != ending:
        raise ValueError(f"--out {out}: expected a file that ends in {ending}")
    writable_target(out if "://" in out else str(target.parent))
    if os.path.lexists(target):
        raise ValueError(f"--out {out} is there already; give a new file, or delete that one first")
    return target


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Folder]:
    """Yield a temporary folder that becomes `target` if the block ends well, and is removed otherwise."""
    nearest = next(folder for folder in target.absolute().parents if folder.exists())  # on the target's file system
    temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}new-", dir=nearest))
    with suppress(PermissionError):  # as in Folder.write
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
    try:
        yield Folder(str(temporary))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)  # over an empty folder too
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
