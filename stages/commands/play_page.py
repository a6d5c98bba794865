"""The page of `serve`: what it answers, and how it looks.

Legend: R regions of one photo, K names.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt
import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from regionclip_core.datasets.images import FORMATS, MAX_BYTES, BadImage, decode_image, read_image_file, to_tensor
from regionclip_core.datasets.names import names_in
from regionclip_core.detection.drawing import draw
from regionclip_core.detection.drawings import looks_like_a_photograph
from regionclip_core.detection.inference import Detections
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.detection.results import PICTURE_NMS
from regionclip_core.proposals.proposers import proposer_row

Row = tuple[Any, ...]
_BOX = "xmin, ymin, xmax, ymax"
_ALONE = "none"
_OVERLAP = 0.3  # in eight scenes of 40 objects it leaves 36 boxes of a score of 0.3, where PICTURE_NMS leaves 108
_STYLE = """
footer { display: none !important; }
.problem { color: var(--error-icon-color); font-weight: 600; }
.rows { overflow-x: auto; }
.rows table { border-collapse: collapse; width: 100%; }
.rows :is(th, td) { border-bottom: 1px solid var(--border-color-primary); padding: 0.4em 0.6em; }
.rows :is(th, td) { text-align: left; white-space: nowrap; }
.photo img { width: 100%; height: 100%; object-fit: contain; }
@media (max-width: 640px) { .rows :is(th, td) { font-size: 0.75em; padding: 0.4em 0.25em; white-space: normal; } }
"""


@dataclass(frozen=True)
class Playground:
    """What the page does, without the page."""

    model: RegionModel
    """Finds objects."""
    pair: tuple[RegionModel, RegionModel] | None = None
    """Teacher and student, to compare; the student proposes the regions."""
    fused: Mapping[str, RegionModel] = field(default_factory=dict)
    """`model` with a second opinion in its scores, by whose opinion it is."""
    unknown: Callable[[Sequence[str]], Sequence[str]] = lambda names: ()
    """Which of some names the model can't know."""

    @property
    def own_words(self) -> str:
        """The model's own names as a text; empty for a CLIP model, which has none."""
        return ", ".join(self.model.vocabulary.names)

    def names(self, words: str) -> tuple[str, ...]:
        """Return the names in a text, see `names_in`; of `own_words` the model's own. ValueError if there are none."""
        own = self.model.vocabulary.names
        if not (names := own if words == self.own_words else names_in(words, "Words")):
            raise ValueError("Words names no category; expected names with commas between them, such as: cup, red kite")
        return names

    def detect(
        self,
        photo: str | None,
        words: str,
        score: float,
        iou: float,
        against_own: bool = False,
        second: str = _ALONE,
    ) -> tuple[Image.Image, list[Row], str]:
        """Return the picture, with masks if the model makes any, a row (name, score, box) per box, and what to say.

        Args:
            photo: path of an image file.
            words: see `names`.
            score: lowest score shown.
            iou: see `NamedDetections.without_doubles`.
            against_own: whether a word is compared with the model's own names instead of the other words.
            second: a key of `fused`, or "none".

        Raises:
            ValueError: for a file that is no image, or names that can't be looked for.
        """
        pixels, names, began = _pixels(photo), self.names(words), time.monotonic()
        model = self.model if second == _ALONE else self.fused[second]
        [found] = model.detect(pixels, names, model.vocabulary.names if against_own else ())
        shown = found.without_doubles(iou).at_least(score)
        said = f"{len(shown)} found in {time.monotonic() - began:.1f} s."
        if not len(shown):
            best = f"; the best score is {float(found.scores[0]):.4f}, of {found.names[0]}" if len(found) else ""
            said = f"Nothing of {score:g} or more{best}."
        if unknown := self.unknown(names):
            said += f" No caption of this run names {', '.join(unknown[:10])}: what is found of it means nothing."
        if model.drawings_only and looks_like_a_photograph(pixels):
            said += " This looks like a photograph, and the model knows drawings only: what it finds means nothing."
        rows = list(zip(shown.names, _digits(shown.scores), _sides(shown.boxes), strict=True))
        return found.plot(pixels, score, iou), rows, said

    def regions(self, photo: str | None, words: str, count: int) -> tuple[Image.Image, Image.Image, list[Row], str]:
        """Return the teacher's picture, the student's, a row per region, and what to say.

        A region has the name whose embedding is nearest to its feature, and that name's probability. Rows have number,
        the teacher's name and probability, the student's, and the box. A region has one number and one colour in both
        pictures.

        Args:
            photo, words: see `detect`.
            count: regions, at most.

        Raises:
            ValueError: as `detect`.
        """
        assert self.pair is not None
        pixels, names = _pixels(photo), self.names(words)
        boxes = propose(self.pair[1], pixels, int(count))
        number, pictures, columns = torch.arange(len(boxes)), list[Image.Image](), list[list[str]]()
        for model in self.pair:
            probability, best = name_probabilities(model, pixels, boxes, names).max(dim=1)
            columns += [names[k] for k in best.tolist()], _digits(probability)
            labels = [f"{i} {name}" for i, name in enumerate(columns[-2], start=1)]
            pictures.append(draw(pixels, Detections(boxes, probability, number, number), labels, 0))
        same = sum(one == other for one, other in zip(columns[0], columns[2], strict=True))
        said = f"{len(boxes)} regions; both models give the same name to {same} of them."
        return pictures[0], pictures[1], list(zip((number + 1).tolist(), *columns, _sides(boxes), strict=True)), said


@torch.no_grad()
def propose(model: RegionModel, pixels: npt.NDArray[np.uint8], count: int) -> Tensor:
    """Return boxes [R, 4], xyxy pixels: the `count` of highest objectness that are no doubles of better ones."""
    assert model.proposer is not None
    [proposals] = model.proposer([proposer_row(pixels)], [to_tensor(pixels)])
    return proposals.boxes[nms(proposals.boxes, proposals.logits, PICTURE_NMS)[:count]]


@torch.no_grad()
def name_probabilities(
    model: RegionModel, pixels: npt.NDArray[np.uint8], boxes: Tensor, names: Sequence[str]
) -> Tensor:
    """Return [R, K]: the softmax over the names, at the model's temperature, without a background."""
    cosines = model.region_features(pixels, boxes) @ model.embed(names).T
    return (cosines / model.detector.temperature).softmax(dim=1)


def make_page(
    playground: Playground, what: str, photos: Sequence[Path] = (), login: tuple[str, str] | None = None
) -> FastAPI:
    """Return the page as a web application, which asks no other server for anything.

    Args:
        what: the model, in words.
        photos: examples.
        login: user and password that the page asks for, before it answers anything else.
    """
    # JPEG, since a PNG of a phone's photo takes seconds.
    shown: dict[str, Any] = {"format": "jpeg", "interactive": False, "show_label": False, "buttons": []}
    one_at_a_time: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    with gr.Blocks(title="RegionCLIP", analytics_enabled=False) as blocks:
        gr.Markdown(
            f"# RegionCLIP\nFinds in a photo what you name. Model: {what}. "
            "Photos stay on the machine that runs this page."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=320,
                    buttons=[],
                    elem_classes="photo",
                )
                # gradio would decode the file its own way, and answer a broken one with an error of its own.
                photo.preprocess = lambda payload: payload and payload.path
                given = " These are the model's own names; put your own words in their place."
                words = gr.Textbox(
                    playground.own_words,
                    label="Words",
                    info="What to look for, with commas between." + given * bool(playground.own_words),
                    placeholder="cup, red kite",
                    lines=3,
                    max_lines=5,
                )
                if photos:
                    gr.Examples([[str(path)] for path in photos], photo, label="Photos of this workspace")
            with gr.Column(scale=3, min_width=300):
                with gr.Tab("Detect"):
                    with gr.Row():
                        lowest = "Lowest that is shown"
                        score = gr.Slider(0, 1, 0.3, step=0.01, label="Score", info=lowest, min_width=240)
                        hidden = "Highest IoU with a better box"
                        iou = gr.Slider(0, 1, _OVERLAP, step=0.05, label="Overlap", info=hidden, min_width=240)
                    own = gr.Checkbox(
                        label="Compare each word with the model's own names",
                        info="Its score then doesn't depend on the other words.",
                        visible=bool(playground.own_words),
                    )
                    second = gr.Radio(
                        [_ALONE, *playground.fused],
                        value=_ALONE,
                        label="Second opinion",
                        info="Takes part in the scores. Crops take longer: a pass of the whole CLIP per proposal.",
                        visible=bool(playground.fused),
                    )
                    button, said = gr.Button("Detect", variant="primary"), gr.HTML()
                    outputs = [gr.Image(**shown), gr.HTML(apply_default_css=False), said]
                    answer = answering(playground.detect, ["name", "score", _BOX], 1)
                    button.click(answer, [photo, words, score, iou, own, second], outputs, **one_at_a_time)
                if playground.pair is not None:
                    student = "detector" if playground.pair[1].finetuned else "student"
                    with gr.Tab("Regions"):
                        gr.Markdown(
                            "The same boxes, named by two models: with the word that its features are nearest to."
                        )
                        count = gr.Slider(1, 30, 8, step=1, label="Regions", info="The most likely objects first")
                        button, said, pictures = gr.Button("Compare regions", variant="primary"), gr.HTML(), []
                        with gr.Row():
                            for name in ("**CLIP**, the teacher", f"**RegionCLIP**, the {student}"):
                                with gr.Column(min_width=240):
                                    gr.Markdown(name)
                                    pictures.append(gr.Image(**shown))
                        outputs = [*pictures, gr.HTML(apply_default_css=False), said]
                        headers = ["region", "CLIP", "score", "RegionCLIP", "score", _BOX]
                        answer = answering(playground.regions, headers, 2)
                        button.click(answer, [photo, words, count], outputs, **one_at_a_time)
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        "/",
        auth=login,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        mcp_server=False,
        # gradio's grey of explanations, neutral_400, is hard to read on white.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
        ),
        css=_STYLE,
    )


class PageServer(uvicorn.Server):
    """Serves what `make_page` gave."""

    def __init__(self, page: FastAPI) -> None:
        super().__init__(uvicorn.Config(page, log_level="error", timeout_graceful_shutdown=1))
        self._ended = page.routes[-1].app.stop_event  # type: ignore[attr-defined]

    async def shutdown(self, sockets: Any = None) -> None:
        """End the connection that each open page holds, and then all else; uvicorn alone would wait for them."""
        self._ended.set()
        await super().shutdown(sockets)


def answering(answer: Callable[..., Row], headers: Sequence[str], pictures: int) -> Callable[..., Row]:
    """Return `answer` for the page: its rows as a table, and an error in place of what it says."""

    def on_click(*inputs: Any) -> Row:
        try:
            *drawn, rows, said = answer(*inputs)
        except Exception as error:  # whatever it is, the page goes on
            if not isinstance(error, ValueError):
                traceback.print_exception(error, file=sys.stderr)
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return *[None] * pictures, "", f'<p class="answer problem" role="alert">{escape(said)}</p>'
        said = f'<p class="answer">{escape(said)}</p>'
        if not rows:
            return *drawn, "", said
        head = "".join(f"<th>{escape(header)}</th>" for header in headers)
        lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
        table = "".join(f"<tr>{line}</tr>" for line in (head, *lines))
        return *drawn, f'<div class="rows"><table>{table}</table></div>', said

    return on_click


def _pixels(photo: str | None) -> npt.NDArray[np.uint8]:
    if photo is None:
        raise ValueError("no photo: give one first")
    try:
        return decode_image(read_image_file(photo))
    except BadImage as error:
        raise ValueError(f"the photo can't be read: {error.reason}; expected {', '.join(FORMATS)}") from error


def _digits(values: Tensor) -> list[str]:
    return [f"{value:.3f}" for value in values.tolist()]


def _sides(boxes: Tensor) -> list[str]:
    return [", ".join(f"{side:.1f}" for side in box) for box in boxes.tolist()]
