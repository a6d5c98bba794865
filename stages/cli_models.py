"""The commands that use a model, or take one or labels in or give them away: detect, features, embed, serve, export,
import, corrections and reproduce. `cli.py` adds them to the command line.
"""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer

from .cli_options import (
    NAMES,
    ConfigOption,
    ModelOption,
    NameOption,
    QuietOption,
    SetOption,
    VerboseOption,
    WorkspaceOption,
    model_source,
    verbosity,
)

ImagesArgument = Annotated[list[str], typer.Argument(help="Image files, folders or globs.")]
AnyNameOption = Annotated[
    str | None, typer.Option(help=f"{NAMES}; or student or teacher: zero-shot.  [default: regionclip]")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="auto, float32, tf32 or bf16.  [default: the workspace's, or auto]")
]
ImageSizeOption = Annotated[int | None, typer.Option(help="Shorter side of the input, pixels.", min=32, max=2**14)]
MaxSizeOption = Annotated[int | None, typer.Option(help="Longer side of it, at most, pixels.", min=32, max=2**14)]
BatchOption = Annotated[
    int | None, typer.Option(help="Images computed at once, at most.  [default: 1 on a CPU, 4 on a GPU]", min=1, max=64)
]
TextOption = Annotated[
    str | None, typer.Option(metavar="DIR", help="CLIP model that embeds names, instead of the model's own.")
]
PromptsOption = Annotated[str | None, typer.Option(help="Templates for names: single, short, clip81 or a file.")]
EmbeddingsOption = Annotated[str | None, typer.Option(metavar="DIR", help="Published class embeddings.")]
USABLE = "expected JPEG, PNG, WebP, GIF, BMP or TIFF files (convert others) of 8 x 8 to 67 million pixels"


def detect(
    images: ImagesArgument,
    model: ModelOption = None,
    classes: Annotated[
        str | None,
        typer.Option(help='What to look for: "a,b,c", a file of names, or @file.  [default: the model\'s own]'),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Names, as for --classes, or own (the model's): a class is compared with these, not with the others."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="New folder.  [default: detections, detections2, ...]")] = None,
    score: Annotated[float, typer.Option(help="Lowest score shown.", min=0, max=1)] = 0.3,
    format: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write coco, yolo, voc, csv, label-studio, cvat or fiftyone; several with commas.  "
            "[default: JSON and pictures]"
        ),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(metavar="FILE", help="Annotation file whose ids --format coco takes.")
    ] = None,
    picture_nms: Annotated[
        float,
        typer.Option(
            help="Pictures leave out what a better box, of any name, overlaps by more than this IoU.", min=0, max=1
        ),
    ] = 0.5,
    batch: BatchOption = None,
    rpn: Annotated[
        str | None, typer.Option(metavar="DIR", help="Proposal network, instead of the model's own.")
    ] = None,
    text: TextOption = None,
    prompts: PromptsOption = None,
    embeddings: EmbeddingsOption = None,
    proposals: Annotated[int | None, typer.Option(help="Proposals per image, at most.", min=1, max=10**5)] = None,
    proposal_nms: Annotated[float | None, typer.Option(help="IoU of the proposals' NMS.", min=0.01, max=1)] = None,
    nms: Annotated[float | None, typer.Option(help="IoU of the per-class NMS.", min=0, max=1)] = None,
    nms_kind: Annotated[str | None, typer.Option(help="Per-class NMS: hard, or soft: gaussian, linear.")] = None,
    max_detections: Annotated[int | None, typer.Option(help="Detections per image, at most.", min=1)] = None,
    objectness: Annotated[
        str | None, typer.Option(help="How the proposals' objectness enters the score: none, sigmoid or raw_logit.")
    ] = None,
    image_size: ImageSizeOption = None,
    max_size: MaxSizeOption = None,
    fuse: Annotated[
        str | None,
        typer.Option(help="CLIP model that takes part in the scores: a folder, or the run's student or teacher."),
    ] = None,
    fuse_crops: Annotated[bool, typer.Option("--fuse-crops", help="It sees crops, not region features.")] = False,
    fuse_base: Annotated[
        float | None,
        typer.Option(help="Its exponent for base categories.  [default: the config's, or 0.35]", min=0, max=1),
    ] = None,
    fuse_novel: Annotated[
        float | None,
        typer.Option(help="Its exponent for all other names.  [default: the config's, or 0.65]", min=0, max=1),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    name: AnyNameOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Find objects of any named category in images: boxes, and masks where the model makes them."""
    from regionclip_core.datasets.categories import class_names  # the names are checked before torch is loaded

    names = () if classes is None else class_names(classes)
    rivals = against if against in (None, "own") else class_names(against, "--against")
    source = model_source(model, config, overrides, workspace, name)
    from .commands.detect import detect as run_detect

    parts = {"rpn": rpn, "text": text, "prompts": prompts, "embeddings": embeddings}
    size = {"image_size": image_size, "max_size": max_size, "proposals": proposals, "proposal_nms": proposal_nms}
    rules = {"nms": nms, "nms_kind": nms_kind, "max_detections": max_detections, "objectness": objectness}
    rules |= {"fuse": fuse, "fuse_crops": fuse_crops, "fuse_base": fuse_base, "fuse_novel": fuse_novel}
    common: dict[str, Any] = {
        "out": out,
        "score": score,
        "classes": names,
        "against": rivals or (),
        "name": name or "regionclip",
    }
    common |= {"formats": format or (), "ids": ids, "picture_nms": picture_nms, "batch": batch}
    _exit(*run_detect(images, source, parts=parts, device=device, precision=precision, **common, **size, **rules))


def features(
    images: ImagesArgument,
    boxes: Annotated[
        str, typer.Option(metavar="FILE", help="COCO's JSON, a folder of YOLO's labels, or a CSV or Parquet table.")
    ],
    out: Annotated[str, typer.Option(help="New file, such as features.parquet.")],
    model: ModelOption = None,
    batch: BatchOption = None,
    image_size: ImageSizeOption = None,
    max_size: MaxSizeOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    name: AnyNameOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the region features of given boxes: one row of a table per box."""
    source = model_source(model, config, overrides, workspace, name)
    from .commands.features import features as run_features
    from .commands.model_choice import NO_PARTS, choose_model

    choice = choose_model(source, name or "regionclip", NO_PARTS, device, precision, "features")
    _exit(*run_features(images, boxes, choice, out, batch, image_size, max_size))


def embed(
    names: Annotated[str, typer.Argument(help='Names: "a,b,c", a file of names, or @file.')],
    out: Annotated[str, typer.Option(help="New file, such as names.safetensors.")],
    model: ModelOption = None,
    text: TextOption = None,
    prompts: PromptsOption = None,
    embeddings: EmbeddingsOption = None,
    device: DeviceOption = "auto",
    name: AnyNameOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the embeddings of names, to be compared with region features."""
    from regionclip_core.datasets.categories import class_names

    wanted = class_names(names, "NAMES")
    source = model_source(model, config, overrides, workspace, name)
    from .commands.embed import embed as run_embed
    from .commands.model_choice import choose_model

    parts = {"rpn": None, "text": text, "prompts": prompts, "embeddings": embeddings}
    run_embed(wanted, choose_model(source, name or "regionclip", parts, device, None, "embed"), out)


def serve(
    model: ModelOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="CLIP model to compare --model with.  [default: the teacher/ in it, if any]"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this one is open to others, and needs a login.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD", envvar="REGIONCLIP_AUTH", help="Login; others see it here, not in the variable."
        ),
    ] = None,
    rpn: Annotated[
        str | None, typer.Option(metavar="DIR", help="Proposal network, instead of the model's own.")
    ] = None,
    text: TextOption = None,
    device: DeviceOption = "auto",
    name: AnyNameOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a page to play with a model: a photo, words, boxes; and CLIP's and RegionCLIP's regions side by side."""
    source = model_source(model, config, overrides, workspace, name)
    from .commands.serve import serve as run_serve

    parts = {"rpn": rpn, "text": text, "prompts": None, "embeddings": None}
    where: dict[str, Any] = {"host": host, "port": port, "auth": auth}
    run_serve(source, name=name or "regionclip", parts=parts, teacher=teacher, device=device, **where)


def export(
    what: Annotated[str, typer.Argument(help="student, teacher or detector; or labels, with their images.")],
    out: Annotated[str, typer.Option(help="Folder to make; with --format official a file, such as model.pth.")],
    model: ModelOption = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="open_clip, detector, official or onnx.  [default: detector for a detector, else open_clip]  labels: "
            "coco, yolo, label-studio, cvat, fiftyone, voc or csv; several with commas.  [default: coco]"
        ),
    ] = None,
    name: NameOption = None,
    split: Annotated[
        list[str] | None, typer.Option(help="labels: of this split; repeatable.  [default: labels.splits]")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="labels: kept ones of at least this score.  [default: all]", min=0, max=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="labels: of the first images with labels only.", min=1)] = None,
    images: Annotated[
        str | None, typer.Option(help="labels: copy images, or refer to where they are.  [default: copy]")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a model or the labels of the workspace for other programs: open_clip, ONNX, YOLO, CVAT, ..."""
    source = model_source(model, config, overrides, workspace, name)
    of_labels = {"--split": split, "--min-score": min_score, "--limit": limit, "--images": images}
    if what == "labels":
        from .commands.export import export_labels

        if isinstance(source, str) or name is not None:
            raise ValueError("export labels: leave out --model and --name, which choose a model; labels are of a run")
        if export_labels(source, out, format, split or (), min_score or 0.0, limit, images or "copy"):
            raise typer.Exit(1)
        return
    if given := [option for option, value in of_labels.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: of `regionclip export labels` alone (came: export {what})")
    from .commands.export import export as run_export

    run_export(what, source, out, format, name)


def corrections(
    file: Annotated[str, typer.Argument(help="Label Studio's export as JSON, or CVAT's annotations.xml.")],
    exported: Annotated[str, typer.Option(metavar="DIR", help="Folder that `regionclip export labels` made before.")],
    out: Annotated[str, typer.Option(help="New CSV file, for labels.corrections.")],
    onto: Annotated[
        str | None, typer.Option(metavar="FILE", help="Corrections that these labels had already; they stay.")
    ] = None,
) -> None:
    """Write what people changed in exported labels as a file for labels.corrections."""
    from regionclip_core.pretraining.corrected_exports import write_changes

    typer.echo(write_changes(file, exported, out, onto))


def import_(
    file: Annotated[str, typer.Argument(help="File of weights: .pth, .pt, .safetensors, an OpenAI download.")],
    out: Annotated[str, typer.Option(help="New folder for what is made of it.")],
    names: Annotated[
        str | None,
        typer.Option(help="Names of the rows: text file, COCO or LVIS annotations, a category set such as coco_ovd."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Architecture (RN50, RN50x4, ...), where the file doesn't say it, or to check it."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="detector, pretrained, rpn, embeddings or clip.  [default: what the file holds]")
    ] = None,
) -> None:
    """Read published weights, check all of them, and write a folder that the other commands take."""
    from regionclip_core.weights.import_options import check_options

    check_options(file, out, names, model, kind)  # typos are said before torch is imported
    from regionclip_core.weights.importing import REPORT, import_checkpoint

    report = import_checkpoint(file, out, names=names, model=model, kind=kind)
    typer.echo(f"imported into {out}")
    typer.echo("\n".join(report.lines()))
    typer.echo(f"every tensor by name: {out}/{REPORT}")


def reproduce(
    preset: Annotated[str, typer.Argument(help="coco_rn50, coco_rn50x4, lvis_rn50 or lvis_rn50x4.")],
    weights: Annotated[str, typer.Option(metavar="DIR", help="Folder with the official files.")],
    imported: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for what `import` makes of them; used again.")
    ] = "weights",
    overrides: SetOption = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", metavar="URL", help="Folder or URL.  [default: runs/published_PRESET]"),
    ] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the published weights with a preset, and print the paper's figures beside the results."""
    from .commands.reproduce import reproduce as run_reproduce
    from .commands.reproduce import reproduction
    from .engine.progress import reporter

    shown = reporter(verbosity(quiet, verbose))
    config = reproduction(preset, weights, imported, workspace, overrides or ())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = (lambda text: None) if quiet else typer.echo
    if not run_reproduce(preset, weights, imported, config, say, shown):
        raise typer.Exit(1)


def _exit(done: int, failed: int) -> None:
    """End with status 1 if an image could not be done."""
    if failed:
        what = f"{failed} of {done + failed} images could not be done" if done else "no image could be done"
        typer.echo(f"error: {what}, the reasons are above; {USABLE}", err=True)
        raise typer.Exit(1)
