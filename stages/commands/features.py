"""The `features` command: one embedding per given box of given images, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.detection.given_boxes import SIDES, read_boxes
from regionclip_core.storage.folder import Folder, new_file
from regionclip_core.storage.locations import printable

from .given_images import any_readable, image_files, read_ahead, reason_of, usual_batch
from .model_choice import ModelChoice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from regionclip_core.detection.region_model import RegionModel


def features(
    images: Sequence[str],
    boxes: str,
    choice: ModelChoice,
    out: str,
    batch: int | None = None,
    image_size: int | None = None,
    max_size: int | None = None,
) -> tuple[int, int]:
    """Write a Parquet file with a row per box: image, name (null where `boxes` has none), xmin, ymin, xmax, ymax in
    pixels, and `feature`, float32[D] of unit length. Prints what was left out.

    The file appears when all images are done; images without boxes, and boxes without area, are left out. Returns how
    many images were done, and how many could not be.

    Args:
        images: files, folders and globs; URLs too.
        boxes: see `read_boxes`.
        batch: images that are encoded at once; None: see `usual_batch`.
        image_size, max_size: see `RegionModel.adjusted`.

    Raises:
        ValueError, FileNotFoundError: for what a user can get wrong; most of it before the model is loaded.
    """
    target, files = new_file(out, ".parquet"), image_files(images)
    of_file = read_boxes(boxes, files)
    chosen = [file for file in files if file in of_file]
    if len(files) > len(chosen):
        print(f"{printable(boxes)} has no boxes of {len(files) - len(chosen)} of {len(files)} images")
    if not any_readable(chosen):
        return 0, len(chosen)
    model = choice.open(with_text=False).adjusted(image_size=image_size, max_size=max_size)
    sides = [pa.field(side, pa.float32()) for side in SIDES]
    feature = pa.field("feature", pa.list_(pa.float32(), model.detector.encoder.embed_dim))
    schema = pa.schema([pa.field("image", pa.string()), pa.field("name", pa.string()), *sides, feature])
    done = empty = 0
    with (
        Folder(str(target.absolute().parent)).write(target.name) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for group, pixels in read_ahead(chosen, batch or usual_batch(model)):
            good: list[Regions] = []
            for name, image in zip(group, pixels, strict=True):
                if isinstance(image, Exception):
                    print(f"{printable(name)}: not read: {printable(reason_of(image))}", flush=True)
                    continue
                good.append(Regions(name, image, *of_file[name].with_area(*image.shape[:2])))
                empty += len(of_file[name].boxes) - len(good[-1].boxes)
            if good:
                writer.write_table(_table(model, good, schema))
            done += len(good)
    print(
        f"features of the boxes of {done} images in {out}"
        + (f"; boxes without area, left out: {empty}" if empty else "")
    )
    return done, len(chosen) - done


class Regions(NamedTuple):
    """An image and its boxes."""

    file: str
    pixels: npt.NDArray[np.uint8]
    boxes: list[list[float]]
    """xyxy, pixels."""
    names: list[str | None]


def _table(model: RegionModel, some: Sequence[Regions], schema: pa.Schema) -> pa.Table:
    """Return the rows of some images."""
    found = model.region_features([one.pixels for one in some], [one.boxes for one in some])
    sides = [side for one in some for box in one.boxes for side in box]
    columns = {
        "image": [printable(one.file) for one in some for _ in one.boxes],
        "name": [name for one in some for name in one.names],
        **{side: pa.array(sides[i :: len(SIDES)], pa.float32()) for i, side in enumerate(SIDES)},
        "feature": pa.FixedSizeListArray.from_arrays(found.numpy().ravel(), found.shape[1]),
    }
    return pa.table(columns, schema)
