"""Makes the pictures of README.md from a finished run: python docs/pictures.py WORKSPACE (default runs/default)."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from regionclip_core.config.loading import load_config
from regionclip_core.datasets.world.contact_sheet import contact_sheet
from regionclip_core.datasets.world.sample import make_sample
from stages.commands.detect import detect

HERE = Path(__file__).parent
SCENES = range(8)  # the first of a stream that no split has: not chosen by their looks
COLUMNS = 4
SIDE = 300
SCORE = 0.5
NMS = 0.2  # stricter than the evaluation, where a second box on an object costs little: here it hides the first


def main(workspace: str) -> None:
    """Write world.png and detections.png beside this file."""
    contact_sheet().save(HERE / "world.png", optimize=True)
    config = load_config("pipeline.yaml", [f"workspace={json.dumps(workspace)}"])
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in SCENES:
            path = Path(folder) / f"{number}.png"
            Image.fromarray(make_sample("scene", config.seed, "readme", number, 128).image).save(path)
            files.append(str(path))
        detect(files, config, out=folder, score=SCORE, nms=NMS)
        pictures = [Image.open(row["picture"]) for row in json.loads((Path(folder) / "detections.json").read_text())]
        sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(pictures) // COLUMNS) * SIDE), "white")
        for number, picture in enumerate(pictures):
            place = (number % COLUMNS * SIDE, number // COLUMNS * SIDE)
            sheet.paste(picture.resize((SIDE - 6, SIDE - 6), Image.Resampling.LANCZOS), place)
        sheet.save(HERE / "detections.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/default")
