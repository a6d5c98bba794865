"""What can be said about a model's folder and its parts before torch is loaded. Imports nothing slow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.storage import given_files
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import exists
from regionclip_core.storage.weight_files import weight_layout


def check_model(place: str, has_names: bool, has_rpn: bool) -> None:
    """Raise FileNotFoundError or ValueError unless a model is there, whole, and can detect.

    `has_names`, `has_rpn`: whether names and a proposal network are given beside it.
    """
    folder, text = Folder(place), Folder(place).child("text")
    is_detector = given_files.holds_detector(place)
    inside = given_files.detector_files(place) if is_detector else given_files.clip_files(place, "student")
    _check_files("--model", [*inside, *map(text.path, given_files.clip_layout(text))])
    if not is_detector and not has_names:
        raise ValueError("a CLIP model has no names of its own: give them with --classes")
    own = folder.read_json("config.json").get("rpn") if is_detector else None
    if not (has_rpn or own or folder.exists("rpn.json") or folder.exists("rpn/rpn.json")):
        raise ValueError(f"--model {place} has no proposal network: give the folder of one with --rpn")


def check_parts(rpn: str | None, text: str | None, prompts: str | None, embeddings: str | None) -> None:
    """Raise FileNotFoundError or ValueError if a part of a model, see `with_parts`, is not there or not whole."""
    if rpn is not None:
        try:
            files = given_files.rpn_files(rpn)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--rpn: {error}") from error
        _check_files("--rpn", files)
    if text is not None:
        _check_files("--text", given_files.clip_files(text, "student"))
    if prompts is not None:
        prompt_templates(prompts, "--prompts")
    if embeddings is not None:
        _check_files("--embeddings", map(Folder(embeddings).path, given_files.EMBEDDING_FILES))


def check_second(place: str) -> None:
    """Raise FileNotFoundError or ValueError unless a CLIP model, for `RegionModel.fused`, is there and whole."""
    if given_files.is_model_folder(Folder(place)):
        raise ValueError(f"--fuse {place}: expected a CLIP model, such as an exported student, but it is a detector")
    _check_files("--fuse", given_files.clip_files(place, "student"))


def _check_files(option: str, files: Iterable[str]) -> None:
    for file in files:
        if not exists(file):
            expected = "a whole folder, as `regionclip import` and `export` make it"
            raise FileNotFoundError(
                f"{option}: {file} is not there, or no file; expected {expected}: copy or make it again"
            )
        if "://" not in file and not file.endswith(".json"):
            weight_layout(Path(file))
