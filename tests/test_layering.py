"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from regionclip_core.config.tree import STAGE_NAMES
from stages import declarations
from stages.base import JobWork, ShardStage, ShardWork, load_work

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "regionclip_core").rglob("*.py"))
STAGES = sorted((ROOT / "stages").rglob("*.py"))
STAGE_FILES = {
    *("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs"),
    *("pretrain", "finetune", "evaluate", "report"),
}
RAY = {"ray_backend", "ray_cluster", "ray_training"}
CLI = {"cli", "cli_configs", "cli_models", "cli_options"}
# What `regionclip --help` and `status` import: nothing slow at the top of these.
QUICK = {
    *(ROOT / "regionclip_core" / "config").glob("*.py"),
    *(
        ROOT / "regionclip_core" / "storage" / f"{name}.py"
        for name in ("records", "folder", "given_files", "weight_files")
    ),
    ROOT / "regionclip_core" / "weights" / "import_options.py",
    ROOT / "regionclip_core" / "models" / "prompt_templates.py",
    ROOT / "regionclip_core" / "concepts" / "given_names.py",
    *(
        ROOT / "regionclip_core" / "detection" / f"{name}.py"
        for name in ("given_parts", "detection_files", "annotation_tools")
    ),
    *(path for path in (ROOT / "stages").glob("*.py") if path.stem not in STAGE_FILES),
    *(path for path in (ROOT / "stages" / "engine").glob("*.py") if path.stem not in RAY),
    *(
        ROOT / "stages" / "commands" / f"{name}.py"
        for name in ("show", "detect", "finished", "export", "embed", "serve")
    ),
    *(ROOT / "stages" / "commands" / f"{name}.py" for name in ("given_images", "known_words", "model_choice")),
}
SLOW = {"torch", "torchvision", "open_clip", "spacy", "ray", "pyarrow", "webdataset", "matplotlib", "rich"}
# The rooms of the library from the ground up: a package imports none that comes after it.
ORDER = ("config", "storage", "ops", "datasets", "concepts", "models", "training", "pretraining", "proposals")
ORDER = (
    "threads",
    "precision",
    *ORDER,
    "detection",
    "evaluation",
    "report",
    "weights",
    "door",
)  # the first two and the last are files
MOST_FILES = 18
"""In one folder; beyond that a newcomer no longer finds the file."""


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Dotted modules that a file imports; with top_only those that run when the file is imported. Relative ones are
    those of `stages`, whose modules have another name where they are installed."""
    found = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = str(node.module)
            assert not name.startswith("stages") or path not in STAGES, f"{path}: `stages` imports itself by dots"
            if node.level:
                assert path in STAGES, f"{path}: relative import"
                above = path.relative_to(ROOT).parts[: -node.level]
                name = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
        elif top_only and _runs_later(node):
            continue
        todo.extend(ast.iter_child_nodes(node))
    return found


def _runs_later(node: ast.AST) -> bool:
    """Whether a statement's imports don't run when its file is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def packages(path: Path, top_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(path, top_only)}


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import ray.train\nif TYPE_CHECKING:\n    import spacy\ndef f():\n    from torch import nn\n")
    assert packages(file) == {"ray", "spacy", "torch"}
    assert packages(file, top_only=True) == {"ray"}


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def neighbours() -> dict[str, set[str]]:
    """The modules of the project that each of them imports, wherever in the file: in functions and for typing too."""
    ours = {module(path): path for path in (*CORE, *STAGES)}
    packages = {module(path) for path in ours.values() if path.name == "__init__.py"}  # docstrings, nothing more
    return {name: imports(path) & ours.keys() - packages for name, path in ours.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return trail[trail.index(name) :]
        if name not in done:
            for following in sorted(edges[name]):
                if found := walk(following, [*trail, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in edges if (found := walk(name, []))), [])


def test_the_finder_of_circles_sees_one() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(neighbours()) == []


def test_the_rooms_of_the_library_are_in_order() -> None:
    packages = {path.parent.name for path in (ROOT / "regionclip_core").glob("*/__init__.py")}
    assert packages == set(ORDER) - {"threads", "precision", "door"}
    up = [
        f"{name} -> {other}"
        for name, others in neighbours().items()
        for other in others
        if name.startswith("regionclip_core.") and other.startswith("regionclip_core.")
        if ORDER.index(other.split(".")[1]) > ORDER.index(name.split(".")[1])
    ]
    assert up == []


@pytest.mark.parametrize("folder", sorted({p.parent for p in (*CORE, *STAGES)}), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    files = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(files) <= MOST_FILES
    assert not {"utils", "common", "helpers", "misc"} & set(files)
    said = ast.parse((folder / "__init__.py").read_text())
    assert ast.get_docstring(said), "the docstring of __init__.py says what lives in a folder"
    assert len(said.body) == 1 or folder.name == "regionclip_core", "files are imported from where they are"


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_knows_nothing_of_the_frame(path: Path) -> None:
    assert not packages(path) & {"ray", "typer", "stages"}


@pytest.mark.parametrize("path", STAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_and_typer_stay_in_their_files(path: Path) -> None:
    assert "ray" not in packages(path) or path.stem in RAY
    assert "typer" not in packages(path) or path.stem in CLI


def test_every_declared_stage_has_its_file() -> None:
    """A stage's name is its file, and its key in the config."""
    assert tuple(declarations.STAGES) == STAGE_NAMES and set(STAGE_NAMES) == STAGE_FILES
    for stage in declarations.STAGES.values():
        assert isinstance(load_work(stage.work), ShardWork if isinstance(stage, ShardStage) else JobWork)


@pytest.mark.parametrize("path", [ROOT / "stages" / f"{name}.py" for name in sorted(STAGE_FILES)], ids=lambda p: p.stem)
def test_a_stage_imports_no_other_stage_and_no_frame_but_base(path: Path) -> None:
    others = {name for name in imports(path) if name.startswith("stages.")}
    assert not {name for name in others if not f"{name}.".startswith("stages.base.")}
    assert imports(path) == imports(path, top_only=True), "the work of a stage is imported by workers: imports on top"


def test_nothing_imports_the_work_of_a_stage() -> None:
    """Workers load it by name, so that the driver stays light."""
    work = {f"stages.{name}" for name in STAGE_FILES}
    assert not [name for name, others in neighbours().items() if others & work]


@pytest.mark.parametrize("path", sorted(QUICK), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_the_command_line_imports_is_quick(path: Path) -> None:
    assert not packages(path, top_only=True) & SLOW
