"""Tar files of samples: a writer whose bytes depend on the content alone, and a safe reader that knows offsets.

A sample is a run of members that share everything up to the first dot of the file name, WebDataset's convention:
`a/000.jpg`, `a/000.txt` and `a/000.json` are sample `a/000`.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from regionclip_core.storage.locations import printable, unsafe_name


class TarWriter:
    """Writes plain tars: no time, no owner, members in the order given. Use as a context manager.

    Args:
        file: open for binary writing; left open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed in close)

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its data in the file.

        Raises:
            ValueError: the name does not fit a ustar header (100 bytes, or 256 with folders).
        """
        info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the owner's names empty
        info.size = len(data)
        info.mode = 0o644
        header = info.tobuf(tarfile.USTAR_FORMAT)
        offset = self._tar.offset + len(header)
        file = self._tar.fileobj
        assert file is not None
        file.write(header)
        file.write(data)
        padding = -len(data) % tarfile.BLOCKSIZE
        file.write(bytes(padding))
        self._tar.offset = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the end marker."""
        self._tar.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()


@dataclass
class TarSample:
    """Members of one sample by their extension (lower case), as (offset, bytes) of the data in the tar."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    unsafe: list[str] = field(default_factory=list)
    """Why members were refused: unsafe names, links, devices."""
    repeated: list[str] = field(default_factory=list)
    """Extensions that came twice; the first is kept."""


class BadTar(ValueError):
    """A tar that can't be read from some point on; the message says where."""


# What tarfile raises on damaged headers: it lets most errors of its parsing through.
_PARSING = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError)
_LARGEST_HEADER = 2**24  # bytes; a name or an extended header
_META = re.compile(r"__[^/]*__($|/)")
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)


def scan_tar(file: BinaryIO) -> Iterator[TarSample]:
    """Samples of an uncompressed tar, in order; only headers are read.

    Nothing is ever unpacked to a path; members with unsafe names, links and devices are named in `unsafe` all the same,
    since keys are used as names further on. Folders and files without an extension are skipped, WebDataset's
    `__...__` members too.

    Raises:
        BadTar: a header is broken or the file ends early; samples before that have been yielded.
    """
    current: TarSample | None = None
    damage: BadTar | None = None
    members = _members(file)
    while True:
        try:
            member = next(members, None)
        except BadTar as error:
            member, damage = None, error
        if member is None:
            break
        name = _split_name(member)
        if name is None:
            continue
        if current is None or name[0] != current.key:
            if current is not None:
                yield current
            current = TarSample(name[0])
        _add(current, name[1], member)
    if current is not None:
        yield current
    if damage is not None:
        raise damage


def _split_name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """(key, extension) of a member; None for what is no part of a sample."""
    if member.isdir() or _META.match(member.name):
        return None
    match = _NAME.match(member.name)
    if match is not None:
        return match.group(1).removeprefix("./"), match.group(2).lower()  # `tar -c .` writes ./
    return (member.name, "") if _problem(member) else None


def _add(sample: TarSample, extension: str, member: tarfile.TarInfo) -> None:
    problem = _problem(member)
    if problem is not None:
        sample.unsafe.append(problem)
    elif extension in sample.members:
        sample.repeated.append(extension)
    else:
        sample.members[extension] = (member.offset_data, member.size)


class _Headers:
    """What tarfile is given to read: small pieces. A damaged header may say that the next one has petabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Members of the tar. Damage raises BadTar, after the whole members before it."""
    end = file.seek(0, 2)
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:")  # noqa: SIM115 (the caller closes it)
    except _PARSING as error:
        raise BadTar(f"no uncompressed tar ({error})") from error
    while True:
        try:
            member = tar.next()
        except _PARSING as error:
            raise BadTar(f"broken header at byte {tar.offset} of {end} ({error})") from error
        if member is None:
            break
        _check_extent(member, tar.offset, end)
        yield member
        tar.members = []  # type: ignore[attr-defined]  # or it would remember every header
    # tarfile takes a broken header after the first for the end: only a block of zeros is one.
    file.seek(tar.offset)
    marker = file.read(tarfile.BLOCKSIZE)
    if len(marker) < tarfile.BLOCKSIZE:
        raise BadTar(f"ends at byte {end} without an end-of-archive marker")
    if marker.strip(b"\0"):
        raise BadTar(f"broken header at byte {tar.offset} of {end}")


def _check_extent(member: tarfile.TarInfo, following: int, end: int) -> None:
    """Refuse a member that ends after the tar, or so early that the next header, at byte `following`, is before it."""
    if following <= member.offset:
        raise BadTar(f"broken header at byte {member.offset} of {end}: {printable(member.name)!r} of negative size")
    plain = member.isreg() and not member.issparse()
    last = member.offset_data + member.size if plain else following - tarfile.BLOCKSIZE
    if last > end:
        raise BadTar(f"ends at byte {end}, in the middle of {printable(member.name)!r}")


def _problem(member: tarfile.TarInfo) -> str | None:
    """Why a member must not be read; None if it may."""
    if member.issym() or member.islnk():
        kind = "symbolic" if member.issym() else "hard"
        return f"{kind} link {printable(member.name)!r} to {printable(member.linkname)!r}"
    if not member.isreg() or member.issparse():
        return f"member {printable(member.name)!r} is no plain file"
    if member.size < 0:
        return f"member {printable(member.name)!r} of negative size"
    return unsafe_name(member.name)
