"""What the files of a split say about each of its images, on disk with one row group per shard.

Annotation and caption files hold boxes and captions in any order. They are read once, when the images are counted.
Their entries go to a spool on disk and are grouped by image; the memory holds only their places. A worker then reads
the rows of its own shard. The list is kept beside the artifact until the stage is done.
"""

from __future__ import annotations

import json
import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.datasets.images import BadImage, read_image_file
from regionclip_core.datasets.source import Piece, Source, even_pieces
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.local_files import full_disk_named
from regionclip_core.storage.locations import file_in, is_remote, unsafe_name

_SCHEMA = pa.schema([pa.field("image", pa.binary(), nullable=False)])  # one JSON document per image
_FORMAT = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}


class Spool:
    """JSON texts on disk, read back in any order. Each takes 8 bytes of memory.

    The file is in the folder for temporary files (`TMPDIR`) and has no name, so that it is gone with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="regionclip-spool-")  # noqa: SIM115 (closed with the spool)
        self._ends = array("q", [0])

    def append(self, text: str) -> int:
        """Add a text; return its number. Undecodable bytes are written as they were read."""
        data = text.encode("utf-8", "surrogateescape")
        with full_disk_named(tempfile.gettempdir()):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        return len(self._ends) - 2

    def joined(self, numbers: Iterable[int]) -> bytes:
        """Return JSON texts as one JSON list."""
        self._file.flush()
        file, ends = self._file.fileno(), self._ends
        return b"[" + b", ".join([os.pread(file, ends[n + 1] - ends[n], ends[n]) for n in numbers]) + b"]"


def by_image(images: npt.NDArray[Any], count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Sort entries by image.

    Args:
        images: [E] the number of each entry's image, -1 where it has none.
        count: N, how many images there are.

    Returns:
        order [E] and first [N + 1]: the entries of image n are order[first[n] : first[n + 1]], in their old order.
    """
    order = np.argsort(images, kind="stable")
    return order, np.searchsorted(images[order], np.arange(count + 1))


class ListedSource(Source):
    """A source whose images are listed in annotation or caption files."""

    def __init__(self, name: str, scratch: Folder, files: str) -> None:
        """`scratch` is a folder for the image list, the same for all workers; `files` are named in messages."""
        self._name, self._scratch, self._named = name, scratch, files
        self._list = f"{quote(name, safe='')}.parquet"
        self._facts: dict[str, Any] = {}
        """What the files say beside their images."""

    @abstractmethod
    def _read_files(self) -> tuple[Iterator[bytes], dict[str, Any]]:
        """Read the split's files; return a JSON document for each image, and the facts."""

    @abstractmethod
    def file_names(self, piece: Piece) -> Iterator[str]:
        """Yield the names of a shard's images below the folder of images, as the files give them."""

    def pieces(self, shard_size: int) -> list[Piece]:
        """Cut the images into shards. The driver makes the first call for an artifact, which reads the files."""
        if not self._scratch.exists(self._list):
            documents, facts = self._read_files()
            with self._scratch.write(self._list) as file, pq.ParquetWriter(file, _SCHEMA, **_FORMAT) as writer:
                while shard := list(islice(documents, shard_size)):
                    writer.write_table(pa.table([shard], schema=_SCHEMA), row_group_size=shard_size)
                writer.add_key_value_metadata({"facts": json.dumps(facts)})
        with self._scratch.open(self._list) as file:
            footer = pq.read_metadata(file)
        self._facts = json.loads(footer.metadata[b"facts"])
        if footer.num_rows == 0:
            where = f"data.splits.{self._name}: no images are listed in {self._named}"
            raise ValueError(f"{where}; give another file or drop it")
        return even_pieces(footer.num_rows, shard_size)

    def _check_images(self, folder: str, names: list[str]) -> None:
        """Raise FileNotFoundError if none of the first images, `names`, is in the folder."""
        problem = ""
        for name in names:
            try:
                if unsafe_name(name) is None:
                    read_image_file(file_in(folder, name))
                    return  # the folder is right; images that are missing cost their rows
            except BadImage as error:
                problem = problem or f"none of the first {len(names)} images is there: {error.reason}"
        if problem:
            if not is_remote(folder) and not os.path.isdir(folder):
                problem = f"no folder {folder}"
            where = f"data.splits.{self._name}.images"
            raise FileNotFoundError(f"{where}: {problem}; give the folder in which the file names start")

    def _documents(self, piece: Piece) -> Iterator[Any]:
        """Yield the parsed document of each image of a shard."""
        with self._scratch.open_table(self._list) as file:
            documents = pq.ParquetFile(file).read_row_group(piece.ordinal)["image"]
        for document in documents:
            yield json.loads(document.as_py().decode("utf-8", "surrogateescape"))
