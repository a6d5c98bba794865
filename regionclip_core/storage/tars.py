"""Tar files of samples: a writer whose bytes depend on the content alone, and a safe reader that knows offsets.

A sample is a run of members that share everything up to the first dot of the file name, WebDataset's convention:
`a/000.jpg`, `a/000.txt` and `a/000.json` are sample `a/000`.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from regionclip_core.storage.locations import printable, unsafe_name


class TarWriter:
    """Writes plain tars: no time, no owner, members in the order given. Use as a context manager.

    webdataset.TarWriter writes a sample's members in the order of their extensions and doesn't say where they are.

    Args:
        file: open for binary writing; left open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed in __exit__)

    def add(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its data in the file.

        Raises:
            ValueError: the name does not fit a ustar header (100 bytes, or 256 with folders).
        """
        info = tarfile.TarInfo(name)  # mode 0644; mtime, uid and gid are 0, the owner's names empty
        info.size = len(data)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(info, io.BytesIO(data))
        return offset

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._tar.close()  # writes the end marker


def tar_index(samples: Sequence[Sequence[tuple[str, int, int]]]) -> bytes:
    """Return an index of a tar, in the form of DALI's `wds2idx`.

    `samples`: of each the (name, offset of the data, bytes) of its members. After a line with the version and the
    number of samples, each has one line: `jpg OFFSET BYTES NAME json OFFSET BYTES NAME`.
    """
    lines = [f"v1.2 {len(samples)}"]
    for members in samples:
        lines.append(" ".join(f"{name.split('.', 1)[1]} {offset} {size} {name}" for name, offset, size in members))
    return "".join(f"{line}\n" for line in lines).encode()


def read_tar_index(data: bytes) -> list[list[tuple[int, int]]]:
    """Return (offset, bytes) of the members of each sample from what `tar_index` gave; names must be without blanks."""
    found = []
    for line in data.decode().splitlines()[1:]:
        fields = line.split(" ")
        found.append([(int(offset), int(size)) for offset, size in zip(fields[1::4], fields[2::4], strict=True)])
    return found


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


_DAMAGED = (tarfile.TarError, ValueError, OverflowError)  # what tarfile raises on damaged headers
_META = re.compile(r"__[^/]*__($|/)")
_NAME = re.compile(r"^((?:.*/)?[^./]+)\.([^/]+)$", re.DOTALL)


def scan_tar(file: BinaryIO) -> Iterator[TarSample]:
    """Yield the samples of an uncompressed tar, in order; only headers are read.

    Nothing is ever unpacked to a path. Members with unsafe names, links and devices are still named in `unsafe`,
    since keys are used as names further on. Folders and files without an extension are skipped, WebDataset's
    `__...__` members too.

    Raises:
        BadTar: a header is broken or the file ends early; samples before that have been yielded.
    """
    end = file.seek(0, 2)
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (the caller closes the file)
    except _DAMAGED as error:
        raise BadTar(f"no uncompressed tar ({error}); unpack it first where it is compressed") from error
    sample: TarSample | None = None
    while True:
        try:
            member = tar.next()
        except _DAMAGED as error:
            damage = f"broken header at byte {tar.offset} of {end} ({error})"
            break
        if member is None:
            # tarfile takes a broken header after the first one for the end: only a block of zeros is the end.
            file.seek(tar.offset)
            marker = file.read(tarfile.BLOCKSIZE)
            damage = f"broken header at byte {tar.offset} of {end}" if marker.strip(b"\0") else ""
            if len(marker) < tarfile.BLOCKSIZE:
                damage = f"ends at byte {end} without an end-of-archive marker"
            break
        plain = member.isreg() and not member.issparse()
        if member.size < 0 or (plain and member.size > end - member.offset_data):
            damage = f"ends at byte {end}, in the middle of {printable(member.name)!r}"
            break
        tar.members = []  # type: ignore[attr-defined]  # or it would remember every header
        if member.isdir() or _META.match(member.name):
            continue
        problem, match = _problem(member), _NAME.match(member.name)
        if match is not None:
            key, extension = match[1].removeprefix("./"), match[2].lower()  # `tar -c .` writes ./
        elif problem is not None:
            key, extension = member.name, ""
        else:
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if problem is not None:
            sample.unsafe.append(problem)
        elif extension in sample.members:
            sample.repeated.append(extension)
        else:
            sample.members[extension] = (member.offset_data, member.size)
    if sample is not None:
        yield sample
    if damage:
        raise BadTar(damage)


def _problem(member: tarfile.TarInfo) -> str | None:
    """Return why a member must not be read; None if it may."""
    if member.issym() or member.islnk():
        kind = "symbolic" if member.issym() else "hard"
        return f"{kind} link {printable(member.name)!r} to {printable(member.linkname)!r}"
    if not member.isreg() or member.issparse():
        return f"member {printable(member.name)!r} is no plain file"
    return unsafe_name(member.name)
