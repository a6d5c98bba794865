"""Writes MISTAKES.md, what is answered to mistakes: python docs/mistakes.py [part of a title ...] runs each of them.

With arguments only these are run, and printed. About four minutes; needs no network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = HERE / "MISTAKES.md"
HEAD = """\
# What mistakes are answered with

Each command was typed as it is here, in a folder with a small pipeline.yaml (the preset `tiny`) whose stages have run
up to `proposals`, a photo, and the files that the titles name. `python docs/mistakes.py` writes this page;
`make test-slow` types them again: each has to end with a status other than 0, without a traceback, in a few lines.
"""

FILES = {
    "pipeline.yaml": "extends: tiny\nexecution: {backend: local}\n",
    "tab.yaml": "extends: tiny\nlabels:\n\tthreshold: 0.2\n",
    "list.yaml": "- labels\n- threshold\n",
    "twice.yaml": "extends: tiny\nlabels: {threshold: 0.2}\nlabels: {threshold: 0.3}\n",
    "round.yaml": "extends: round.yaml\n",
    "source.yaml": "extends: tiny\ndata: {splits: {mine: {source: coc, images: x}}}\n",
    "missing.yaml": "extends: tiny\ndata: {splits: {mine: {source: folder, images: no/such, captions: c.csv}}}\n",
    "empty_images.yaml": "extends: tiny\ndata: {splits: {mine: {source: folder, images: empty, captions: c.csv}}}\n",
    "header.yaml": "extends: tiny\ndata: {splits: {mine: {source: folder, images: photos, captions: header.csv}}}\n",
    "cut.yaml": "extends: tiny\ndata: {splits: {mine: {source: coco, images: photos, instances: cut.json}}}\n",
    "tars.yaml": "extends: tiny\ndata: {splits: {mine: {source: tars, urls: 'no/{000..003}.tar'}}}\n",
    "c.csv": "file,caption\na.png,a dog\n",
    "header.csv": "image,text\na.png,a dog\n",
    "cut.json": '{"images": [{"id": 1, "file_name": "a.png", "width": 64',
    "names.txt": "dog\ncat\n",
    "twice.txt": "dog\ncat\ndog\n",
    "names.yaml": "names: [dog, cat]\n",
    "empty.txt": "",
    "notes.txt": "no image\n",
    "broken.jpg": "\xff\xd8\xff no image",
    "boxes.csv": "image,xmin,ymin,xmax,ymax\nother.png,1,2,30,40\n",
    "boxes_header.csv": "picture,a,b,c,d\nphoto.png,1,2,30,40\n",
    "ablation.yaml": "seeds: [0]\nvariants: {a: {}, b: {labels.treshold: 0.5}}\n",
    "weights.pth": "not weights",
    "file_as_workspace": "",
    "phone/1.heic": "....ftypheic",
    "full/model.json": "{}",
}
MISTAKES = [
    # the command line
    ("a command misspelt", "regionclip runn"),
    ("a stage misspelt", "regionclip run labls"),
    ("an option misspelt", "regionclip status --jsn"),
    ("an artifact misspelt", "regionclip show label"),
    ("an option without a value", "regionclip run --set"),
    ("an empty variable as a value", 'regionclip run --config "$NOT_SET"'),
    ("an option given twice", "regionclip detect photo.png --score 0.2 --score 0.4"),
    # configs
    ("a config that is not there", "regionclip run --config configs/my.yaml"),
    ("a preset misspelt", "regionclip run --config coco_rn51"),
    ("a folder as a config", "regionclip run --config photos"),
    ("a folder as one of two configs", "regionclip run --config tiny --config photos"),
    ("no pipeline.yaml in this folder", "cd photos && regionclip run"),
    ("a tab in YAML", "regionclip run --config tab.yaml"),
    ("a list as a config", "regionclip run --config list.yaml"),
    ("a section written twice", "regionclip run --config twice.yaml"),
    ("a config that extends itself", "regionclip run --config round.yaml"),
    ("a key misspelt", "regionclip run --set labels.treshold=0.5"),
    ("a word for a number", "regionclip run --set labels.threshold=high"),
    ("a value out of range", "regionclip run --set labels.threshold=2"),
    ("no value in --set", "regionclip run --set labels.threshold"),
    ("a backend that there isn't", "regionclip run --backend spark"),
    ("a device that there isn't", "regionclip run --set execution.device=gpu"),
    ("a GPU where there is none", "regionclip run --set execution.device=cuda"),
    ("a CLIP misspelt", "regionclip run --set teacher.model=RN51"),
    ("published weights that are not here", "regionclip run --set teacher.model=RN50 --set teacher.weights=openai"),
    ("weights that are not there", "regionclip run --set teacher.weights=weights/RN50.pt"),
    ("processes that don't divide the batch", "regionclip run --backend ray --set execution.train_workers=3"),
    ("a split that is not in data.splits", "regionclip run --set evaluate.split=validation"),
    ("an evaluation of a split without boxes", "regionclip run --set evaluate.split=closeup"),
    ("a spaCy pipeline that isn't installed", "regionclip run --set concepts.parser=en_core_web_trf"),
    ("stages that other stages need, left without their section", "regionclip run --set finetune=null"),
    # data
    ("a source misspelt", "regionclip run --config source.yaml"),
    ("an image folder that is not there", "regionclip run data --config missing.yaml"),
    ("an empty image folder", "regionclip run data --config empty_images.yaml"),
    ("captions with another header", "regionclip run data --config header.yaml"),
    ("annotations cut short", "regionclip run data --config cut.yaml"),
    ("a pattern of tars that matches nothing", "regionclip run data --config tars.yaml"),
    ("a category set misspelt", "regionclip run --set data.categories=coco_ovdd"),
    ("categories as lines", "regionclip run --set data.categories=names.txt"),
    ("categories under another key", "regionclip run --set data.categories=names.yaml"),
    # the workspace
    ("a file as a workspace", "regionclip run -w file_as_workspace"),
    ("a storage without its driver", "regionclip run -w gs://bucket/ws"),
    ("a storage that there isn't", "regionclip run -w foo://bucket/ws"),
    ("a workspace that is not there", "regionclip status -w no/such && regionclip show data -w no/such"),
    ("a stage that never ran", "regionclip show evaluate"),
    ("verify of an empty folder", "regionclip verify -w empty"),
    ("gc of a folder of photos", "regionclip gc --yes -w photos"),
    ("a place where nothing may be written", "regionclip run -w /sys/ws"),
    ("Ray where none answers", "regionclip run --backend ray --force data --set execution.address=127.0.0.1:1"),
    # models and images
    ("detect before any run", "regionclip detect photo.png --classes dog"),
    ("a photo that is not there", "regionclip detect nothing.jpg --model detector"),
    ("a text file as a photo", "regionclip detect notes.txt --model detector"),
    ("a broken photo", "regionclip detect broken.jpg --model detector"),
    ("an empty folder of photos", "regionclip detect empty --model detector"),
    ("photos of a phone", "regionclip detect phone --model detector"),
    ("a pattern that matches no photo", "regionclip detect 'holiday*.jpg' --model detector"),
    ("no class in --classes", "regionclip detect photo.png --model detector --classes ' , '"),
    ("an empty file of classes", "regionclip detect photo.png --model detector --classes empty.txt"),
    ("a class twice", "regionclip detect photo.png --model detector --classes 'dog,dog'"),
    ("a folder that is no model", "regionclip detect photo.png --model photos --classes dog"),
    ("a name of a hub as a model", "regionclip detect photo.png --model openai/clip-vit-base-patch32 --classes dog"),
    ("a score in percent", "regionclip detect photo.png --model detector --score 30"),
    ("a detector that there isn't", "regionclip detect photo.png --name region"),
    ("a GPU for detect where there is none", "regionclip detect photo.png --model detector --device cuda"),
    ("prompts that are not there", "regionclip detect photo.png --model detector --prompts my_prompts.txt"),
    ("a model and a workspace", "regionclip detect photo.png --model detector -w runs/tiny"),
    ("an output format that there isn't", "regionclip detect photo.png --model detector --format pascal"),
    ("boxes of other photos", "regionclip features photo.png --model detector --boxes boxes.csv --out f.parquet"),
    (
        "boxes under other headings",
        "regionclip features photo.png --model detector --boxes boxes_header.csv --out f.parquet",
    ),
    ("an output file that is there", "regionclip embed dog --model detector --out names.txt"),
    ("export of what there isn't", "regionclip export detectr --out new"),
    ("export into a folder that is in use", "regionclip export teacher --out full"),
    ("import of a text file", "regionclip import notes.txt --out new"),
    ("import of a file that is not there", "regionclip import model_final.pth --out new"),
    ("import of a damaged file", "regionclip import weights.pth --out new"),
    ("a key misspelt in a variant", "regionclip ablate ablation.yaml"),
    ("a config of images that are not there", "regionclip init --images holiday --out my.yaml"),
    ("a config of a folder without images", "regionclip init --images empty --out my.yaml"),
    ("a config over one that is there", "regionclip init --images photos --captions c.csv --out tab.yaml"),
    ("a pool of names with one twice", "regionclip run --set concepts.file=twice.txt"),
    ("a name that is added and banned", "regionclip run --set 'concepts.add=[dog]' --set 'concepts.ban=[dog]'"),
    ("a concept that the pool lacks", "regionclip show concepts --against nowhere"),
    ("an export of labels in a form that there isn't", "regionclip export labels --out review --format labelme"),
    ("a comparison with what isn't there", "regionclip compare runs/tiny runs/other"),
    ("a page of a model that isn't there", "regionclip serve --model nowhere"),
    ("published weights that are not in the folder", "regionclip reproduce coco_rn50 --weights photos"),
    ("curves for a service that isn't set up", "regionclip run --set execution.curves=mlflow"),
]


def prepare(folder: Path) -> None:
    """Write the files, and run the stages that some of the mistakes need."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "latin-1")
    (folder / "empty").mkdir()
    (folder / "photos").mkdir()
    for name in ("photo.png", "photos/a.png"):
        Image.linear_gradient("L").convert("RGB").save(folder / name)
    ready = answer("regionclip run proposals && regionclip run finetune -w runs/whole", folder)
    assert ready[0] == 0, ready[1]
    made = answer("regionclip export detector -w runs/whole --out detector", folder)
    assert made[0] == 0, made[1]


def answer(command: str, folder: Path) -> tuple[int, str]:
    """Return the exit status of a command, and what it prints, without what differs from call to call."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": places, "COLUMNS": "110", "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    text = (done.stdout + done.stderr).replace(str(folder), "~")
    return done.returncode, re.sub(r"\d+\.\d s\b", "... s", text).strip()


def answers(titles: list[str]) -> list[tuple[str, str, int, str, float]]:
    """Return title, command, status, answer and seconds of the mistakes whose title has one of these words; of all."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        prepare(folder)
        for title, command in MISTAKES:
            if not titles or any(word in title for word in titles):
                began = time.monotonic()
                found.append((title, command, *answer(command, folder), time.monotonic() - began))
                print(f"{found[-1][4]:5.1f} s  status {found[-1][2]}  {title}", file=sys.stderr)
    return found


def page(found: list[tuple[str, str, int, str, float]]) -> str:
    """Return the page as Markdown."""
    parts = [
        f"## {number}. {title[0].upper()}{title[1:]}\n\n```\n$ {command}\n{text}\n[status {status}]\n```\n"
        for number, (title, command, status, text, _) in enumerate(found, 1)
    ]
    return "\n".join([HEAD, *parts])


if __name__ == "__main__":
    text = page(answers(sys.argv[1:]))
    if sys.argv[1:]:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")
