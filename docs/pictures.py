"""Makes the pictures of the documents from a finished run.

    python docs/pictures.py [WORKSPACE] [--set KEY=VALUE ...]     default: runs/default

world.png and detections.png are README's, page-*.png (the page of `serve`) and report-*.png the how-tos'. The latter
two need Chromium and the Python package playwright.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from regionclip_core.config.loading import load_config
from regionclip_core.config.tree import Config
from regionclip_core.datasets.world.contact_sheet import contact_sheet
from regionclip_core.datasets.world.sample import make_sample
from stages.commands.detect import detect
from stages.commands.finished import finished, folder_of
from stages.commands.model_choice import NO_PARTS, choose_model
from stages.commands.serve import listening, opened_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
SCENES = range(8)  # the first of a stream that no split has: not chosen by their looks
COLUMNS = 4
SIDE = 300
SCORE = 0.5
NMS = 0.2  # stricter than the evaluation, where a second box on an object costs little: here it hides the first
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PHONE, WIDE = 390, 1280  # pixels
WORDS = "tree, whale, shirt, airplane, vase, red umbrella"
MOST_BYTES = 120_000
BELOW_LINKS = "e => scrollTo(0, e.getBoundingClientRect().top - document.querySelector('nav').offsetHeight)"


def main() -> None:
    """Write the pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", nargs="?", default="runs/default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `regionclip run`")
    given = parser.parse_args()
    config = load_config("pipeline.yaml", [*given.set, f"workspace={json.dumps(given.workspace)}"])
    save(contact_sheet(), "world")
    with tempfile.TemporaryDirectory() as folder:
        scenes = [Path(folder) / f"{number}.png" for number in SCENES]
        for number, path in zip(SCENES, scenes, strict=True):
            Image.fromarray(make_sample("scene", config.seed, "readme", number, 128).image).save(path)
        save(detected(scenes, config, folder), "detections")
        with browser() as chromium:
            page_pictures(chromium, config, scenes[0])
            report_pictures(chromium, config)


def save(picture: Image.Image, name: str) -> None:
    """Write a picture with as many colours, 256 at most, as keep it small."""
    for colours in (256, 128, 64, 32):
        few = picture.convert("RGB").quantize(colours, kmeans=2, dither=Image.Dither.NONE)  # dither is noise to PNG
        few.save(file := io.BytesIO(), "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    (HERE / f"{name}.png").write_bytes(file.getvalue())
    print(f"{name}.png: {picture.width} x {picture.height}, {colours} colours, {file.tell() / 1000:.0f} kB")


def beside(pictures: Sequence[Image.Image], columns: int, gap: int, colour: str) -> Image.Image:
    """Return pictures of one size as a sheet."""
    width, height = (side + gap for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), colour)
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def detected(scenes: Sequence[Path], config: Config, folder: str) -> Image.Image:
    """Return what `detect` finds in the scenes, as a sheet."""
    detect([str(path) for path in scenes], config, out=folder, score=SCORE, nms=NMS)
    drawn = [Image.open(row["picture"]) for row in json.loads((Path(folder) / "detections.json").read_text())]
    side = SIDE - 6
    return beside([one.resize((side, side), Image.Resampling.LANCZOS) for one in drawn], COLUMNS, 6, "white")


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium, the one on the PATH."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=SWITCHES)
        yield chromium
        chromium.close()


def opened(chromium: Browser, url: str, width: int, height: int, dark: bool = False) -> Page:
    """Return a page in a window of this size."""
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(60_000)
    page.goto(url)
    return page


def shot(page: Page, whole: bool = False) -> Image.Image:
    """Return what the window shows, or the whole page."""
    return Image.open(io.BytesIO(page.screenshot(full_page=whole)))


def page_pictures(chromium: Browser, config: Config, scene: Path) -> None:
    """The page of `serve`: found boxes in a wide window and on a phone, and regions in the dark."""
    choice = choose_model(config, "regionclip", NO_PARTS, "cpu", None, "serve", names=True)
    with listening("127.0.0.1", 0) as listener, opened_page(choice) as (_, app):
        from stages.commands.play_page import PageServer

        server = PageServer(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            save(answered(opened(chromium, url, WIDE, 900), scene, "Detect"), "page-wide")
            save(answered(opened(chromium, url, PHONE, 844), scene, "Detect", WORDS), "page-phone")
            save(answered(opened(chromium, url, WIDE, 900, dark=True), scene, "Regions"), "page-dark")
        finally:
            server.should_exit = True
            thread.join()


def answered(page: Page, scene: Path, tab: str, words: str | None = None) -> Image.Image:
    """Return the page with the answer of a tab to an uploaded scene; `words`: None for the model's own names."""
    page.locator("input[type=file]").set_input_files(scene)
    page.get_by_label("Remove Image").wait_for()
    if words is not None:
        page.get_by_label("Words").fill(words)
    page.get_by_role("tab", name=tab).click()
    page.locator("button.primary:visible").click()
    page.locator(".rows:visible td").first.wait_for()
    page.mouse.move(0, 0)  # the button under it has another colour
    page.wait_for_function("[...document.images].every(image => image.complete)")
    return shot(page, whole=True)


def report_pictures(chromium: Browser, config: Config) -> None:
    """The report: its results in a wide window, three parts on a phone, and curves in the dark."""
    folder = folder_of(finished(config, ["report"], purpose="docs/pictures.py")["report"])
    url = Path(folder.path("report.html")).absolute().as_uri()
    parts = ("#results", "h3:has-text('AP50 per category')", "#mistakes")

    def at(part: str, width: int, height: int, dark: bool = False) -> Image.Image:
        page = opened(chromium, url, width, height, dark)
        page.locator(part).first.evaluate(BELOW_LINKS)
        return shot(page)

    save(at("#results", WIDE, 1150), "report-wide")
    save(at("#mistakes", WIDE, 1150, dark=True), "report-dark")
    save(beside([at(part, PHONE, 844) for part in parts], 3, 10, "grey"), "report-phone")


if __name__ == "__main__":
    main()
