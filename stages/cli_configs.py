"""The command that writes a config: init. `cli.py` adds it to the command line."""

from __future__ import annotations

from typing import Annotated

import typer


def init(
    images: Annotated[
        str, typer.Option(metavar="DIR_OR_TARS", help="Folder of images, or tars: a folder, 'web/*.tar'.")
    ],
    out: Annotated[str, typer.Option(metavar="FILE", help="YAML file to write, such as my.yaml.")],
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Captions: .jsonl, .csv, .tsv, .parquet, or COCO's .json; tars have theirs.  "
            "[default: captions.* in the folder or above it]",
        ),
    ] = None,
    boxes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Boxes: COCO's instances_*.json, or LVIS's lvis_v1_*.json.")
    ] = None,
    val_images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of the images of --val-boxes.  [default: that of --images]"),
    ] = None,
    val_boxes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Boxes, as --boxes, of images that no training sees, to evaluate on.  [default: evaluate on --boxes]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="YAML with base: and novel: names.  [default: those of --boxes, all base; LVIS's rare ones novel]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="small, RN50, ViT-B-16, ...  [default: small for a rehearsal, RN50 with --weights]"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A tag (openai), a file, a folder from `import`.  [default: random, to rehearse]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over --out.")] = False,
) -> None:
    """Look at your images, captions and boxes, and write a commented config with sizes that fit."""
    from .commands.init import init as run_init

    for line in run_init(images, captions, boxes, val_images, val_boxes, classes, out, model, weights, force):
        typer.echo(line)
