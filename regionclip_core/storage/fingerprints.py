"""Fingerprints: everything that an artifact depends on, as one sha256.

A fingerprint covers the stage's name and version, its slice of the config, the *content* of its upstream artifacts
and the content of its external inputs. Where something ran, and how fast, is no part of it.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from regionclip_core.storage.folder import Folder, canonical_json, file_sha256
from regionclip_core.storage.locations import is_remote, nearest_file, remote

SHORT = 12
"""Characters of the fingerprint that name the artifact's folder."""
SETTLED = 2.0
"""Seconds without a change after which a file's times are trusted."""


def fingerprint(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    raw_inputs: Mapping[str, str],
) -> str:
    """Return the sha256 (hex) of everything that decides a stage's output.

    `inputs` maps an upstream stage to its content digest, `raw_inputs` an external path to its digest. Raises
    ValueError, with the dotted path, for a setting that has no canonical form.
    """
    body = {
        "stage": stage,
        "version": version,
        "settings": dict(settings),
        "inputs": dict(inputs),
        "raw_inputs": dict(raw_inputs),
    }
    return hashlib.sha256(canonical_json(body, f"fingerprint of {stage}")).hexdigest()


def is_mark(name: str) -> bool:
    """Return whether a folder's name is one that a fingerprint gives an artifact."""
    return len(name) == SHORT and set(name) <= set("0123456789abcdef")


class InputDigests:
    """Digests of external files and folders, kept in the workspace so that a large file is read once.

    - a file: sha256 of its content, remembered while its size, its times and its inode stay the same;
    - a folder or a glob pattern: sha256 over the sorted relative names and sizes of the files, contents unread;
    - a URL: size and ETag of the object where the store gives one, else sha256 of its content.

    A digest says what an input held when it was planned; a stage reads it later. If an input is replaced in between,
    the output counts as made from the old content; `changed_since` finds that when the stage is done.
    """

    NAME = "input-digests.json"

    def __init__(self, cache: Folder) -> None:
        self._cache = cache
        self._known: dict[str, Any] | None = None
        self._new = False

    def digest(self, path: str) -> str:
        """Return the digest of one input. Raises FileNotFoundError when there is nothing at `path`."""
        if is_remote(path):
            return _remote_digest(path)
        path = path.removeprefix("file://")
        if glob.has_magic(path) and not os.path.exists(path):
            return _listing_digest(path, [Path(p) for p in glob.glob(path, recursive=True)], None)
        if os.path.isdir(path):
            return _listing_digest(path, [p for p in Path(path).rglob("*") if p.is_file()], Path(path))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"input {path!r} is not there (looked from {os.getcwd()}){nearest_file(path)}")
        if self._known is None:
            try:
                found = self._cache.read_json(self.NAME)
            except (FileNotFoundError, ValueError):  # a damaged cache is as good as none
                found = None
            self._known = found if isinstance(found, dict) else {}
        place, stamp = os.path.abspath(path), _stamp(path)
        match self._known.get(place):
            case {"stamp": known, "sha256": str(digest)} if stamp is not None and known == stamp:
                return digest
        digest = file_sha256(Path(path))
        if stamp is not None and _stamp(path) == stamp:  # it stayed the same while it was read
            self._known[place] = {"stamp": stamp, "sha256": digest}
            self._new = True
        return digest

    def changed_since(self, raw_inputs: Mapping[str, str]) -> list[str]:
        """Return the paths of the inputs that are gone or whose digest is not the one in `raw_inputs`."""
        changed = []
        for path, before in raw_inputs.items():
            now = ""
            with suppress(FileNotFoundError):
                now = self.digest(path)
            if now != before:
                changed.append(path)
        return changed

    def save(self) -> None:
        """Write the new digests to the workspace."""
        if self._new and self._known is not None:
            self._cache.write_json(self.NAME, self._known, indent=1)
            self._new = False


def _stamp(path: str) -> str | None:
    """Return size, times and inode, which change when a file does; None while that is not certain.

    A file system's clock ticks some 250 times per second: a file that is written again within a tick, at the same size,
    keeps both its times. So no digest is remembered of a file that changed less than SETTLED seconds ago.
    """
    status = os.stat(path)
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < SETTLED * 1e9:
        return None
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _listing_digest(path: str, files: list[Path], root: Path | None) -> str:
    if not files:
        raise FileNotFoundError(f"input {path!r} holds no file (looked from {os.getcwd()})")
    rows = sorted(((f.relative_to(root) if root else f).as_posix(), f.stat().st_size) for f in files)
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def _remote_digest(url: str) -> str:
    with remote(url) as (fs, path):
        fs.invalidate_cache()  # another process may have replaced it since the last look
        if glob.has_magic(path) and not fs.exists(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
        elif fs.isdir(path):
            found = fs.find(path, detail=True)
        else:
            try:
                found = {path: fs.info(path)}
            except FileNotFoundError as error:  # which names the path alone
                raise FileNotFoundError(f"input {url!r} is not there") from error
            if not _etag(found[path]):
                with fs.open(path, "rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
    if not found:
        raise FileNotFoundError(f"input {url!r} holds no file")
    rows = sorted((name, info.get("size"), _etag(info)) for name, info in found.items())
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def _etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
