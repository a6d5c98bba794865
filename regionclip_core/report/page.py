"""The report page: one HTML file with everything inside, no scripts, nothing fetched; and results.md for a README.

Both depend on the artifacts, their manifests and the settings alone: the same inputs give the same bytes. Python
computes what is shown, the files in templates/ write it.
"""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from regionclip_core.config.tree import STAGE_NAMES, Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.origin import duration
from regionclip_core.report.results import Metrics, groups_of, judge, metrics_in, number, result_rows, shift_rows
from regionclip_core.report.run import Run
from regionclip_core.report.sections import SECTIONS
from regionclip_core.storage.records import Folder, read_manifest, size

TEMPLATES = Environment(
    loader=PackageLoader("regionclip_core.report"),
    autoescape=select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
TEMPLATES.filters |= {"thousands": "{:,}".format, "number": number, "size": size, "duration": duration}


def build_page(config: Config, inputs: Mapping[str, Folder]) -> tuple[str, Mapping[str, str]]:
    """Return the whole page as HTML, and its tables as CSV by name.

    Args:
        inputs: finished artifacts by stage name; artifacts that the run didn't need may be missing.

    Raises:
        ValueError: an input has no manifest, i.e. its stage is not finished.
    """
    folders = {name: inputs[name] for name in STAGE_NAMES if name in inputs}
    manifests = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        if manifest is None:
            raise ValueError(f"report: {folder.url} has no manifest.json; run the {name} stage first")
        manifests[name] = manifest
    run = Run(config, folders, manifests, Vocabulary.from_json(folders["data"].read_json("categories.json")))
    contents = {name: section(run) for name, section in SECTIONS.items()}
    # The sections have put all their images into the book by now.
    page = TEMPLATES.get_template("page.html").render(
        config=config, run=run, sections=contents, pictures=run.book.pictures
    )
    return page, run.tables.files


def format_markdown(metrics: Metrics) -> str:
    """Return the tables of results and the three claims as Markdown, with the rows of one group's names too."""
    rows = result_rows(metrics)
    return TEMPLATES.get_template("results.md").render(
        rows=rows,
        metrics=metrics_in(rows),
        groups=groups_of(metrics),
        shift=shift_rows(metrics),
        claims=judge(metrics),
    )
