"""The `serve` command: a page to play with a model. Not a stage: it leaves workspace and models alone."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import clip_folder, clip_layout

from .finished import folder_of, undisturbed
from .known_words import unknown_names
from .model_choice import NO_PARTS, ModelChoice, choose_model, with_second

if TYPE_CHECKING:
    from fastapi import FastAPI

    from regionclip_core.detection.region_model import RegionModel

    from .play_page import Playground

AUTH_VARIABLE = "REGIONCLIP_AUTH"
"""Environment variable of `--auth`."""
EXAMPLES = 6
"""Photos of a workspace's evaluated split that the page offers."""


def serve(
    source: Config | str,
    *,
    name: str = "regionclip",
    parts: Mapping[str, str | None] = NO_PARTS,
    teacher: str | None = None,
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
) -> None:
    """Serve a page that takes a photo and words, until Ctrl-C. Prints its link.

    Args:
        source, name, parts, device: see `choose_model`.
        teacher: see `opened_page`.
        host, port: where to listen; port 0 takes a free one.
        auth: USER:PASSWORD that the page asks for; any `host` but this machine's own needs one.

    Raises:
        ValueError, FileNotFoundError: if there is no such model, a part of it is missing, the port is taken, or a login
            is missing or malformed.
        ImportError: without gradio.
    """
    # What a user can get wrong comes before torch, gradio and the model, which take seconds to load.
    if find_spec("gradio") is None:
        raise ImportError('serve needs gradio: pip install "regionclip[serve]"')
    login = login_of(auth, host)
    if teacher is not None:
        if not isinstance(source, str):
            raise ValueError("--teacher goes with --model: a workspace has its own teacher")
        if not clip_layout(clip_folder(teacher, "teacher")):
            raise FileNotFoundError(
                f"--teacher {teacher}: no CLIP model there; expected a folder from `regionclip export teacher`, or one "
                "that `regionclip import` made of a CLIP or pretraining file"
            )
    choice = choose_model(source, name, parts, device, None, "serve", names=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: uploads are deleted
    with listening(host, port) as listener, opened_page(choice, teacher, login) as (_, page):
        from .play_page import PageServer

        if not is_local(host):
            print(
                f"note: to --host {host} password and photos travel as plain text: where others can listen, put a "
                "proxy with HTTPS before the page, or leave out --host and use ssh -L",
                file=sys.stderr,
            )
        shown = f"[{host}]" if ":" in host else host
        print(f"the page is at http://{shown}:{listener.getsockname()[1]} (Ctrl-C stops it)", flush=True)
        try:
            PageServer(page).run(sockets=[listener])
        except KeyboardInterrupt:
            print("stopped")


def is_local(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    return host in ("localhost", "::1") or host.startswith("127.")


def login_of(auth: str | None, host: str) -> tuple[str, str] | None:
    """Return user and password; None for a page without. ValueError if they are malformed, or missing for `host`."""
    if auth is None:
        if is_local(host):
            return None
        raise ValueError(
            f"--host {host}: other machines reach the page there, so it needs a login. Set {AUTH_VARIABLE} to "
            "USER:PASSWORD in the environment (or give --auth USER:PASSWORD, which others on this machine can see). "
            "Or leave out --host and reach the page from elsewhere by `ssh -L 7860:127.0.0.1:7860 THIS_MACHINE`"
        )
    user, _, password = auth.partition(":")
    if not (user and password):  # what came is not shown: it may be the password
        raise ValueError(f"--auth, or {AUTH_VARIABLE}: expected USER:PASSWORD, a colon with something on both sides")
    return user, password


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. ValueError if it can't, with the reason."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"can't listen on --host {host}, --port {port}: {error.strerror or error}; take a free port such as "
            f"--port {port + 1} (0: any free one), and a host of this machine, such as 127.0.0.1"
        ) from error


@contextmanager
def opened_page(
    choice: ModelChoice, teacher: str | None = None, login: tuple[str, str] | None = None
) -> Iterator[tuple[Playground, FastAPI]]:
    """Load the models; give what the page does, and the page as a web application. Uploads are deleted at the end.

    Args:
        teacher: a CLIP model whose regions are shown beside those of a model's folder; None: the teacher/ in that
            folder, if there is one. A workspace has both where `teacher` and `pretrain` are done.
        login: see `make_page`.
    """
    with TemporaryDirectory(prefix="regionclip-serve-") as scratch:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": scratch}  # before gradio is imported
        source, lines, model = choice.source, choice.lines, choice.open()
        pair = _pair(choice, model, teacher)
        fused: dict[str, RegionModel] = {}
        if pair is not None:
            if pair[1] is not model:
                fused["the student's regions"] = with_second(model, pair[1], source, crops=False)
            fused["the teacher's crops"] = with_second(model, pair[0], source, crops=True)
        from .play_page import Playground, make_page

        if isinstance(source, str):
            playground = Playground(model, pair, fused)
            yield playground, make_page(playground, source, (), login)
        else:
            playground = Playground(model, pair, fused, lambda names: unknown_names(source, lines, names))
            photos = example_photos(choice, Path(scratch)) if "data" in lines else []
            yield playground, make_page(playground, f"{choice.name}, of the run in {source.workspace}", photos, login)


def _pair(choice: ModelChoice, model: RegionModel, teacher: str | None) -> tuple[RegionModel, RegionModel] | None:
    """Return teacher and student; None where there is only one model."""
    if not isinstance(choice.source, str):
        if not {"teacher", "pretrain"} <= choice.lines.keys():
            return None
        first, second = (
            model if name == choice.name else replace(choice, name=name).open() for name in ("teacher", "student")
        )
        return first, second
    inside = Folder(choice.source).child("teacher")
    folder = clip_folder(teacher, "teacher") if teacher else inside
    if not clip_layout(folder):
        return None
    from regionclip_core.detection.assembly import zero_shot
    from regionclip_core.models.clip import load_clip
    from regionclip_core.models.text_embeddings import read_prompts

    other = zero_shot(load_clip(folder), read_prompts(folder)).to(str(model.device))
    return other.adjusted(model.preprocess.image_size, model.preprocess.max_size), model


def example_photos(choice: ModelChoice, folder: Path) -> list[Path]:
    """Write the first readable images of the workspace's evaluated split into `folder`, and return their paths."""
    from regionclip_core.datasets.images import BadImage, ImageReader, check_image
    from regionclip_core.datasets.index import read_index, split_shards

    assert isinstance(choice.source, Config)
    data, photos = folder_of(choice.lines["data"]), list[Path]()
    with undisturbed([choice.lines["data"]]), ImageReader(data) as reader:
        for row in read_index(data, split_shards(data, [choice.source.evaluate.split])[0]):
            try:
                image = reader.read_bytes(row)
                photos.append(folder / f"{len(photos)}.{check_image(image).extension}")
            except BadImage:  # the folder of a data set may be gone since
                continue
            photos[-1].write_bytes(image)
            if len(photos) == EXAMPLES:
                break
    return photos
