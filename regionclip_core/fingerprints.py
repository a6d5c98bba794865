"""Fingerprints: what an artifact depends on, as one sha256.

A fingerprint covers the stage's name and version, its slice of the config, the *content* of its upstream artifacts
and the content of its external inputs. Where something ran, and how fast, is no part of it.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionclip_core.folders import Folder, canonical_json, file_sha256
from regionclip_core.locations import remote

SHORT = 12
"""Characters of the fingerprint that name the artifact's folder."""


def fingerprint(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    raw_inputs: Mapping[str, str],
) -> str:
    """sha256 (hex) of everything that decides a stage's output.

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


class InputDigests:
    """Digests of external files and folders, kept in the workspace so that a large file is read once.

    - a file: sha256 of its content, remembered by (path, size, modification time in ns);
    - a folder or a glob pattern: sha256 over the sorted relative names and sizes of the files, contents unread;
    - a URL: size and ETag of the object where the store gives one, else sha256 of its content.
    """

    NAME = "input-digests.json"

    def __init__(self, cache: Folder) -> None:
        self._cache = cache
        self._known: dict[str, str] | None = None
        self._new = False

    def digest(self, path: str) -> str:
        """Digest of one input. Raises FileNotFoundError when there is nothing at `path`."""
        if "://" in path and not path.startswith("file://"):
            return _remote_digest(path)
        path = path.removeprefix("file://")
        if glob.has_magic(path) and not os.path.exists(path):
            return _listing_digest(path, [Path(p) for p in glob.glob(path, recursive=True)], None)
        if os.path.isdir(path):
            return _listing_digest(path, [p for p in Path(path).rglob("*") if p.is_file()], Path(path))
        if not os.path.isfile(path):
            raise FileNotFoundError(f"input {path!r} is not there (looked from {os.getcwd()})")
        return self._file_digest(path)

    def _file_digest(self, path: str) -> str:
        if self._known is None:
            self._known = self._cache.read_json(self.NAME) if self._cache.exists(self.NAME) else {}
        status = os.stat(path)
        key = f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}"
        if key not in self._known:
            self._known[key] = file_sha256(Path(path))
            self._new = True
        return self._known[key]

    def save(self) -> None:
        """Keep what was learnt. Called by the holder of the workspace's lock only."""
        if self._new and self._known is not None:
            self._cache.write_json(self.NAME, self._known, indent=1)
            self._new = False


def _listing_digest(path: str, files: list[Path], root: Path | None) -> str:
    if not files:
        raise FileNotFoundError(f"input {path!r} holds no file (looked from {os.getcwd()})")
    rows = sorted(((f.relative_to(root) if root else f).as_posix(), f.stat().st_size) for f in files)
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def _remote_digest(url: str) -> str:
    with remote(url) as (fs, path):
        if glob.has_magic(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
        elif fs.isdir(path):
            found = fs.find(path, detail=True)
        else:
            found = {path: fs.info(path)}
            if not _etag(found[path]):
                with fs.open(path, "rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
    if not found:
        raise FileNotFoundError(f"input {url!r} holds no file")
    rows = sorted((name, info.get("size"), _etag(info)) for name, info in found.items())
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def _etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("md5Hash") or "")
