"""The embedded world's pictures as a user's own data: tars, a COCO folder and a captioned folder, at any URL."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import numpy as np
from PIL import Image

from regionclip_core.datasets.world.categories import CATEGORIES
from regionclip_core.datasets.world.sample import WorldSample, make_sample
from regionclip_core.storage.folder import Folder

NAMES = [category.name for category in CATEGORIES]


def picture(stream: str, number: int) -> WorldSample:
    return make_sample("scene", 1, stream, number, 80)


def encoded(image: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def tar_bytes(members: list[tuple[tarfile.TarInfo | str, bytes]]) -> bytes:
    """A tar of these members, names taken as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(folder: Folder, tars: int = 2, images: int = 4) -> str:
    """Tars in img2dataset's layout; returns the pattern that names them."""
    for tar in range(tars):
        members: list[tuple[tarfile.TarInfo | str, bytes]] = []
        for number in range(images):
            sample = picture("web", tar * images + number)
            members.append((f"{number:04d}.jpg", encoded(sample.image)))
            members.append((f"{number:04d}.txt", sample.captions[0].encode()))
        folder.write_bytes(f"{tar:05d}.tar", tar_bytes(members))
    return folder.path("*.tar")


def write_coco(folder: Folder, images: int = 4, stream: str = "coco") -> dict[str, str]:
    """A folder of images with instances and captions; returns the split's settings."""
    body: dict[str, Any] = {"images": [], "annotations": []}
    body["categories"] = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    captions: dict[str, Any] = {"images": [], "annotations": []}
    pictures = folder.child("images")
    for number in range(images):
        sample = picture(stream, number)
        name = f"{number:012d}.png"
        pictures.write_bytes(name, encoded(sample.image, "PNG"))
        height, width = sample.image.shape[:2]
        body["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for box, label in zip(sample.boxes.tolist(), sample.labels, strict=True):
            xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            one = {"image_id": number, "category_id": NAMES.index(label) + 1, "bbox": xywh, "iscrowd": 0}
            body["annotations"].append({**one, "id": len(body["annotations"]), "area": xywh[2] * xywh[3]})
        captions["annotations"] += [{"image_id": number, "caption": caption} for caption in sample.captions]
    captions["images"] = body["images"]
    for name, file in (("instances.json", body), ("captions.json", captions)):
        folder.write_bytes(name, json.dumps(file).encode())
    urls = {
        "images": pictures.url,
        "instances": folder.path("instances.json"),
        "captions": folder.path("captions.json"),
    }
    return {"source": "coco", **urls}


def write_folder(folder: Folder, images: int = 3) -> dict[str, str]:
    """A folder of images and a caption file; returns the split's settings."""
    lines = []
    for number in range(images):
        sample = picture("folder", number)
        folder.write_bytes(f"{number}.png", encoded(sample.image, "PNG"))
        lines.append(json.dumps({"file": f"{number}.png", "caption": sample.captions[0]}))
    folder.write_bytes("captions.jsonl", "\n".join(lines).encode())
    return {"source": "folder", "images": folder.url, "captions": folder.path("captions.jsonl")}
