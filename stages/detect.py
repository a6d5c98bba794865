"""The `detect` command: a finetuned detector on images of one's own. Not a stage: it leaves the workspace as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regionclip_core.artifacts import Folder
from regionclip_core.config import Config


def detect(
    config: Config, images: list[str], classes: list[str], out: str, checkpoint: str | None, score: float
) -> None:
    """Write each image with its boxes, and `detections.json`, into `out`; prints one line an image.

    An image that can't be read gets its reason in the JSON and on the screen, and the others go on.

    Raises:
        ValueError: if the workspace has no finished detector for this config.
    """
    from regionclip_core.detecting import Finder, draw
    from regionclip_core.images import BadImage, decode_image, read_image_file
    from regionclip_core.vocabulary import load_categories

    names = classes or list(load_categories(config.data.categories).names)
    folders = _artifacts(config)
    detector = Folder(checkpoint) if checkpoint else folders["finetune"]
    finder = Finder.load(config, detector, folders["pretrain"], folders["rpn"], names)
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for number, name in enumerate(images):
        try:
            pixels = decode_image(read_image_file(name))
        except (BadImage, OSError) as error:
            results.append({"image": name, "error": str(error), "detections": []})
            print(f"{name}: not read: {error}")
            continue
        found = finder.find(pixels)
        picture = target / f"{number:03d}-{Path(name).stem}.png"
        draw(pixels, found, names, score).save(picture)
        shown = [
            {"name": names[int(label)], "score": round(float(s), 4), "box": [round(float(v), 1) for v in box]}
            for box, s, label in zip(found.boxes, found.scores, found.labels, strict=True)
            if float(s) >= score
        ]
        results.append({"image": name, "picture": str(picture), "detections": shown})
        words = [f"{d['name']} {d['score']:.2f}" for d in shown]
        print(f"{name}: {', '.join(words) or 'nothing above the score'}")
    (target / "detections.json").write_text(json.dumps(results, indent=1))
    print(f"pictures and detections.json in {target}")


def _artifacts(config: Config) -> dict[str, Folder]:
    """The finished artifacts that detection reads."""
    from stages.plan import Planner

    lines = {line.stage: line for line in Planner(config, Folder(config.workspace)).lines()}
    folders = {}
    for stage in ("rpn", "pretrain", "finetune"):
        line = lines[stage]
        if line.state != "done" or line.path is None:
            raise ValueError(
                f"detect needs the finished stage {stage}, which is {line.state} in {config.workspace} "
                f"({line.reason}); run `regionclip run finetune` with the same config first"
            )
        folders[stage] = Folder(line.path)
    return folders
