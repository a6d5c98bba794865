"""What headless Chromium sees of a page that is one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)
TOO_WIDE = """() => [...document.querySelectorAll("main *, header *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1
         && !e.closest(".wide, pre, nav, svg") && e.tagName != "SVG").map(e => e.outerHTML.slice(0, 100))"""
BROKEN = """async () => {
    const urls = [...document.querySelectorAll("image")].map(e => e.getAttribute("href"));
    const loads = url => new Promise(done => {
        const image = new Image(); image.onload = () => done(image.naturalWidth > 0); image.onerror = () => done(false);
        image.src = url; });
    const found = await Promise.all(urls.map(loads));
    return {images: urls.length, broken: found.filter(ok => !ok).length}; }"""
BARS = """() => [...document.querySelectorAll(".aps li > div")].map(
    e => [parseFloat(e.querySelector("b").textContent), e.querySelector("i").getBoundingClientRect().width])"""
HIDDEN = """() => { document.documentElement.style.scrollBehavior = "auto";
    return [...document.querySelectorAll("nav a")].filter(link => {
        const section = document.querySelector(link.getAttribute("href"));
        section.scrollIntoView();
        return section.querySelector("h2").getBoundingClientRect().top
             < document.querySelector("nav").getBoundingClientRect().bottom; }).map(link => link.textContent); }"""
BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"


@dataclass(frozen=True)
class Seen:
    """One look at a page."""

    page_width: int
    """Of all of the page, pixels: more than the window's where the page scrolls sideways."""
    too_wide: list[str]
    """Elements beyond the window's right edge that are in no box with a scroll bar of its own."""
    background: tuple[int, int, int]
    images: int
    broken: int
    """Images that don't load."""
    requests: list[str]
    """URLs asked for, without the page's own and `data:`."""
    console: list[str]
    """Errors and warnings, and exceptions."""
    bars: list[tuple[float, float]]
    """Number beside it, and width in pixels, of each bar of a category."""
    hidden: list[str]
    """Links of the bar at the top that lead to a heading below it, out of sight."""
    csv: tuple[str, str]
    """Name and text of the first table, downloaded by a click."""


def look(page: Path, width: int = 390, dark: bool = False) -> Seen:
    """Open a page, with all that is folded in it unfolded. Skips the test where there is no Chromium."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM}: the page can't be looked at")
    sync = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    requests: list[str] = []
    console: list[str] = []
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        context = browser.new_context(
            viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: console.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: console.append(str(error)))
        tab.goto(page.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        red, green, blue = (int(part) for part in tab.evaluate(BACKGROUND)[4:-1].split(","))
        images = tab.evaluate(BROKEN)
        with tab.expect_download() as waiting:
            tab.click("p.csv a")
        seen = Seen(
            page_width=tab.evaluate("document.documentElement.scrollWidth"),
            too_wide=tab.evaluate(TOO_WIDE),
            background=(red, green, blue),
            images=images["images"],
            broken=images["broken"],
            requests=[url for url in requests if url != page.as_uri() and not url.startswith("data:")],
            console=console,
            bars=[(value, width) for value, width in tab.evaluate(BARS) if value is not None],
            hidden=tab.evaluate(HIDDEN),
            csv=(waiting.value.suggested_filename, Path(waiting.value.path()).read_text()),
        )
        browser.close()
    return seen
