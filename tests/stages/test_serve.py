"""`regionclip serve`: its page in a browser, what it answers without one, and what the command refuses."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from export_runs import Run, finished_run
from PIL import Image
from small_models import small_detector
from small_runs import artifact
from torchvision.ops import box_iou

from regionclip_core import load
from regionclip_core.config.loading import load_config
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.region_model import RegionModel
from regionclip_core.proposals.proposers import proposer_row
from stages.commands.model_choice import NO_PARTS, ModelChoice, choose_model
from stages.commands.serve import example_photos, listening, opened_page

if TYPE_CHECKING:  # gradio and Playwright take seconds to load, and other tests need neither
    from playwright.sync_api import Page

    from stages.commands.play_page import Playground

CHROMIUM = shutil.which("chromium")
SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]
WORDS = ["dragon", "tea pot", "cup"]


@pytest.fixture(autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gradio, in a process with several pages one after the other, makes the first one's folder again."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.mktemp("run"), "finetune")


@pytest.fixture(scope="module")
def detector(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert run("export", "detector", "--out", str(folder)).exit_code == 0
    return str(folder)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("photos") / "wide.png"
    Image.fromarray(make_sample("scene", 5, "mine", 0, 128).image).resize((150, 100)).save(file)
    return str(file)


def chosen(run: Run, name: str = "regionclip") -> ModelChoice:
    return choose_model(load_config(str(run.file)), name, NO_PARTS, "cpu", None, "serve", names=True)


@contextmanager
def served(run: Run) -> Iterator[tuple[str, Playground]]:
    """The link to the page of a run, in this process, and what the page does."""
    with listening("127.0.0.1", 0) as listener, opened_page(chosen(run)) as (playground, app):
        from stages.commands.play_page import PageServer

        server = PageServer(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/", playground
        finally:
            server.should_exit = True
            thread.join()


def rows_of(page: Page) -> list[tuple[str, ...]]:
    """The cells of the table that is seen."""
    return [tuple(row.locator("td").all_inner_texts()) for row in page.locator("tr:visible:has(td)").all()]


def shows(page: Page, number: int, picture: Image.Image) -> bool:
    """Whether the page has this picture, as a JPEG, among those of its answer, within ten seconds: each part of an
    answer is put on the page by itself, and the words may come first."""
    picture.save(expected := io.BytesIO(), "JPEG")
    for _ in range(100):
        source = page.locator("[role=tabpanel] img:visible").nth(number).get_attribute("src")
        assert source is not None
        if np.array_equal(Image.open(io.BytesIO(page.request.get(source).body())), Image.open(expected)):
            return True
        page.wait_for_timeout(100)
    return False


def written(boxes: torch.Tensor) -> list[str]:
    return [", ".join(f"{side:.1f}" for side in box) for box in boxes.tolist()]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_a_visitor_finds_boxes_and_compares_regions(run: Run, detector: str, photo: str, tmp_path: Path) -> None:
    """Of a workspace. The references: an exported detector, and `Playground.regions`, which has a test of its own."""
    from playwright.sync_api import sync_playwright

    (tmp_path / "broken.jpg").write_bytes(b"no image")
    model = load(detector)
    with served(run) as (url, playground), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)

        def answer(button: str, said: str) -> None:
            page.get_by_role("button", name=button, exact=True).click()
            page.locator(".answer:visible").get_by_text(said).wait_for()

        def upload(file: Path | str) -> None:
            page.locator("input[type=file]").set_input_files(file)
            page.get_by_label("Remove Image").wait_for()

        def compare(file: Path | str, against: Sequence[str] = (), other: RegionModel | None = None) -> None:
            """The page's answer with the model's own."""
            [found] = (other or model).detect(file, WORDS, against)
            kept = found.without_doubles(0.3)
            answer("Detect", f"{len(kept)} found in ")
            scores = [f"{score:.3f}" for score in kept.scores.tolist()]
            assert len(kept) > 2
            assert rows_of(page) == list(zip(kept.names, scores, written(kept.boxes), strict=True))
            assert shows(page, 0, found.plot(file, score=0, iou=0.3))

        own, alone = model.vocabulary.names, page.get_by_label("Compare each word with the model's own names")
        words = page.get_by_placeholder("cup, red kite")
        assert words.input_value() == ", ".join(own)
        words.fill(", ".join(WORDS))
        page.get_by_label("number input for Score").fill("0")
        answer("Detect", "no photo: give one first")
        upload(photo)
        alone.check()
        compare(photo, own)
        page.get_by_label("Remove Image").click()
        upload(tmp_path / "broken.jpg")
        answer("Detect", "the photo can't be read: no image of a known format")
        page.get_by_label("Remove Image").click()
        page.locator("button.gallery-item").nth(1).click()
        page.get_by_label("Remove Image").wait_for()
        alone.uncheck()
        page.get_by_label("the student's regions").check()
        compare(example_photos(chosen(run), tmp_path)[1], other=model.fused(chosen(run, "student").open()))

        page.get_by_role("tab", name="Regions").click()
        *pictures, rows, said = playground.regions(str(tmp_path / "1.png"), ", ".join(WORDS), 8)
        answer("Compare regions", said)
        assert rows_of(page) == [tuple(map(str, row)) for row in rows]
        assert all(shows(page, number, picture) for number, picture in enumerate(pictures))

        page.get_by_role("tab", name="Detect").click()
        words.fill("a, b, a")
        answer("Detect", "Words names ['a'] more than once")
        browser.close()
    assert len(asked) > 10
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []


def test_regions_have_each_models_best_name(run: Run, photo: str) -> None:
    """Region by region and name by name. Both models see what the student proposes, without doubles."""
    from stages.commands.play_page import Playground

    models = (chosen(run, "teacher").open(), chosen(run, "student").open())
    first, second, rows, said = Playground(models[1], models).regions(photo, ", ".join(WORDS), 4)
    pixels = np.array(Image.open(photo))
    [proposed] = models[1].proposer([proposer_row(pixels)], [torch.from_numpy(pixels).permute(2, 0, 1).contiguous()])
    boxes: list[torch.Tensor] = []
    for box in proposed.boxes[proposed.logits.argsort(descending=True)]:
        if all(float(box_iou(box[None], other[None])) <= 0.5 for other in boxes):
            boxes.append(box)
    assert len(boxes) >= 4
    expected = []
    for number, box in enumerate(boxes[:4], start=1):
        row: list[object] = [number]
        for model in models:
            feature = model.region_features(photo, [box.tolist()])[0]
            powers = {
                name: math.exp(float(feature @ model.embed([name])[0]) / model.detector.temperature) for name in WORDS
            }
            best = max(powers, key=lambda name: powers[name])
            row += [best, f"{powers[best] / sum(powers.values()):.3f}"]
        expected.append((*row, *written(box[None])))
    assert rows == expected
    same = sum(row[1] == row[3] for row in rows)
    assert said == f"4 regions; both models give the same name to {same} of them."
    assert first.size == second.size == (450, 300)


def test_a_second_opinion_is_the_students_or_the_teachers(run: Run, photo: str) -> None:
    """With the config's exponents and context; the models that are compared keep their own temperature."""
    config = load_config(str(run.file), ["evaluate.fusion.novel=0.9", "evaluate.fusion.temperature=0.5"])
    choice = choose_model(config, "regionclip", NO_PARTS, "cpu", None, "serve", names=True)
    student, teacher, alone = (chosen(run, name).open() for name in ("student", "teacher", "regionclip"))
    with opened_page(choice) as (playground, _):
        assert playground.pair is not None
        assert playground.pair[1].detector.temperature == student.detector.temperature != 0.5
        answers = {
            name: playground.detect(photo, ", ".join(WORDS), 0, 1, False, name)[1]
            for name in ("none", "the student's regions", "the teacher's crops")
        }
    student.detector.temperature = teacher.detector.temperature = 0.5
    models = (
        alone,
        alone.fused(student, novel=0.9),
        alone.fused(teacher, novel=0.9, crop_context=config.labels.context),
    )
    for rows, model in zip(answers.values(), models, strict=True):
        [found] = model.detect(photo, WORDS)
        scores = [f"{score:.3f}" for score in found.scores.tolist()]
        assert rows == list(zip(found.names, scores, written(found.boxes), strict=True))
    assert len({str(rows) for rows in answers.values()}) == 3


def test_masks_are_drawn_and_photographs_recognised(photo: str, tmp_path: Path) -> None:
    """By a detector with a mask head, whose masks fill their boxes, and that has seen drawings only."""
    from stages.commands.play_page import Playground

    plain = replace(small_detector(), drawings_only=True)
    own = plain.detector
    torch.manual_seed(0)
    masked = OpenVocabularyDetector(own.encoder, own.class_embeddings, own.names, own.temperature, "zero", True).eval()
    assert masked.mask_head is not None
    masked.box_regressor, masked.mask_head.predictor.bias.data = own.box_regressor, torch.full((1,), 9.0)
    words = ", ".join(plain.vocabulary.names)
    without, rows, said = Playground(plain).detect(photo, words, 0, 0.5)
    tinted, same_rows, _ = Playground(replace(plain, detector=masked)).detect(photo, words, 0, 0.5)
    assert rows == same_rows != [] and "photograph" not in said
    changed = np.abs(np.asarray(tinted).astype(int) - np.asarray(without)).max(axis=2) > 2
    inside, outside = np.zeros_like(changed), np.ones_like(changed)
    for row in rows:
        x0, y0, x1, y1 = (round(3 * float(side)) for side in row[2].split(", "))
        inside[y0:y1, x0:x1] = True
        outside[max(0, y0 - 9) : y1 + 9, max(0, x0 - 9) : x1 + 9] = False  # the picture is enlarged, with soft edges
    assert changed[inside].mean() > 0.6 and not changed[outside].any()  # labels are the same in both

    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    said = Playground(plain).detect(str(tmp_path / "noise.png"), words, 0, 0.5)[-1]
    assert said.endswith(
        "This looks like a photograph, and the model knows drawings only: what it finds means nothing."
    )


def test_a_page_with_a_login_answers_after_it(detector: str, photo: str) -> None:
    from starlette.testclient import TestClient

    choice = choose_model(detector, "", NO_PARTS, "cpu", None, "serve", names=True)
    with opened_page(choice, login=("ann", "se:cret")) as (_, app), TestClient(app) as visitor:

        def answers() -> list[int]:
            with open(photo, "rb") as file:
                upload = visitor.post("/gradio_api/upload", files={"files": file})
            asked = visitor.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"})
            return [visitor.get("/config").status_code, upload.status_code, asked.status_code]

        assert answers() == [401, 401, 401]
        for user, password in (("ann", "secret"), ("ann", ""), ("bob", "se:cret")):
            assert visitor.post("/login", data={"username": user, "password": password}).status_code in (400, 422)
        assert answers() == [401, 401, 401]
        assert visitor.post("/login", data={"username": "ann", "password": "se:cret"}).status_code == 200
        assert answers() == [200, 200, 200]


def test_what_a_visitor_gets_wrong_is_an_answer(
    detector: str, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of a detector's folder without its text encoder."""
    shutil.copytree(detector, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "text")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with opened_page(choose_model(str(tmp_path / "bare"), "", NO_PARTS, "cpu", None, "serve", True)) as (playground, _):
        from stages.commands.play_page import answering

        assert playground.pair is None
        answer = answering(playground.detect, ["name", "score", "box"], 1)
        picture, rows, said = answer(photo, playground.own_words, 0, 0.5)
        assert picture.size == (450, 300) and rows.count("<tr>") > 2 and " found in " in said
        picture, rows, said = answer(photo, "cat, dog", 1, 0.5)
        assert picture.size == (450, 300) and rows == "" and "Nothing of 1 or more; the best score is 0." in said
        unsure = replace(playground, unknown=lambda names: names[1:])
        assert unsure.detect(photo, "cat, dog", 0, 0.5)[-1].endswith(
            "No caption of this run names dog: what is found of it means nothing."
        )
        for file, words, message in (
            (None, "cat", "no photo: give one first"),
            (
                str(tmp_path / "broken.jpg"),
                "cat",
                "the photo can&#x27;t be read: no image of a known format",
            ),
            (photo, " , ", "Words names no category"),
            (photo, "", "Words names no category"),
            (photo, "<b>, cat, <b>", "Words names [&#x27;&lt;b&gt;&#x27;] more than once"),
            (
                photo,
                "cat, dragon",
                "the model has no embedding of [&#x27;dragon&#x27;] and no text encoder to make one",
            ),
            (photo, "@names.txt", "the model has no embedding of [&#x27;@names.txt&#x27;]"),  # no visitor reads files
        ):
            picture, rows, said = answer(file, words, 0, 0.5)
            assert picture is None and rows == "" and 'role="alert"' in said and message in said

        def fail(*arguments: Any) -> None:
            raise RuntimeError("CUDA out of memory")

        monkeypatch.setattr(RegionModel, "detect", fail)
        assert "RuntimeError: CUDA out of memory" in answer(photo, "cat", 0, 0.5)[-1]


def test_the_photos_offered_are_of_the_evaluated_split(run: Run, tmp_path: Path) -> None:
    data = artifact(run.workspace, "data")
    [shard, *_] = json.loads((data / "splits.json").read_text())["val"]["shards"]
    with tarfile.open(data / f"images-{shard:05d}.tar") as tar:
        stored = [tar.extractfile(member).read() for member in tar.getmembers()]  # type: ignore[union-attr]
    photos = example_photos(chosen(run), tmp_path)
    assert [path.read_bytes() for path in photos] == stored[:6] != []


@pytest.mark.parametrize("imported", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_clip_models_are_compared(run: Run, photo: str, tmp_path: Path, imported: bool) -> None:
    """A student has no names of its own; beside it is what `--teacher` names, or the teacher of an imported file."""
    student, teacher, rpn = (str(artifact(run.workspace, stage)) for stage in ("pretrain", "teacher", "rpn"))
    place, parts, beside = student, {**NO_PARTS, "rpn": rpn}, teacher
    if imported:
        place, parts, beside = str(tmp_path), NO_PARTS, None
        for name, folder in (("student", student), ("teacher", teacher), ("rpn", rpn)):
            shutil.copytree(folder, tmp_path / name)
    with opened_page(choose_model(place, "", parts, "cpu", None, "serve", names=True), beside) as (playground, _):
        assert playground.own_words == "" and playground.pair is not None
        first, second = playground.pair
        assert first.preprocess == second.preprocess
        for model, folder in ((first, teacher), (second, student)):
            assert torch.equal(model.embed(WORDS), load(folder).embed(WORDS))
        assert not torch.equal(*(model.region_features(photo, [[10, 20, 60, 90]]) for model in playground.pair))
        assert len(playground.regions(photo, "cup", 2)[2]) == 2


def test_mistakes_are_said_before_torch_is_loaded(run: Run, detector: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        mistakes = {
            f"can't listen on --host 127.0.0.1, --port {port}: Address already in use": [
                "--model",
                detector,
                "--port",
                port,
            ],
            "can't listen on --host 192.0.2.1, --port 7": [
                "--model",
                detector,
                "--auth",
                "ann:secret",
                "--host",
                "192.0.2.1",
                "--port",
                "7777",
            ],
            "nowhere: no model there": ["--model", "nowhere", "--port", "0"],
            "--teacher nowhere: no CLIP model there": ["--model", detector, "--teacher", "nowhere"],
            "--teacher goes with --model": ["--config", str(run.file), "--teacher", detector],
            "--host 0.0.0.0: other machines reach the page there, so it needs a login. Set REGIONCLIP_AUTH": [
                *("--model", detector, "--host", "0.0.0.0"),
            ],
            "--auth, or REGIONCLIP_AUTH: expected USER:PASSWORD": ["--model", detector, "--auth", "secret"],
            "--model needs no config": ["--model", detector, "--name", "clip"],
            "serve needs the finished stage finetune": ["--config", "tiny", "--workspace", str(tmp_path)],
            "has no proposal network": ["--model", str(artifact(run.workspace, "pretrain")), "--port", "0"],
            "'--port'": ["--model", detector, "--port", "70000"],
            'serve needs gradio: pip install "regionclip[serve]"': ["--model", detector],
        }
        code = (
            "import json, sys\nfrom stages.cli import app\n"
            "for arguments in json.loads(sys.argv[1]):\n"
            "    if len(arguments) == 3:\n        sys.modules['gradio'] = None\n"
            "    try:\n        app(arguments)\n"
            "    except SystemExit as end:\n        print(end.code, 'torch' in sys.modules, file=sys.stderr)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps([["serve", *arguments] for arguments in mistakes.values()])],
            cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    *said, rest = done.stderr.split("2 False\n")
    assert len(said) == len(mistakes) and not rest and "secret" not in done.stderr, done.stderr
    for message, answer in zip(mistakes, said, strict=True):
        assert message in " ".join(answer.split()), answer


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(detector: str, tmp_path: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "stages.cli", "serve", "--model", detector, "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    environment["REGIONCLIP_AUTH"] = "ann:secret"
    visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("the page is at http://") and line.endswith("(Ctrl-C stops it)\n"), line
        link = line.split()[4].replace("0.0.0.0", "127.0.0.1")
        visitor.open(f"{link}/login", data=b"username=ann&password=secret").close()
        with visitor.open(link) as page:
            assert b"RegionCLIP" in page.read()
        assert any(tmp_path.glob("regionclip-serve-*"))
        with visitor.open(f"{link}/gradio_api/heartbeat/abc") as open_page:  # as a browser holds it
            assert open_page.readline() == b"data: ALIVE\n"
            process.send_signal(stop)
            process.wait(timeout=60)
        assert process.stdout.read() == "stopped\n"
        errors = process.stderr.read()
        assert "note: to --host 0.0.0.0 password and photos travel as plain text" in errors
        assert "Traceback" not in errors and "ERROR" not in errors, errors
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
