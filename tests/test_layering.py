"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "regionclip_core").rglob("*.py"))
STAGES = sorted((ROOT / "stages").rglob("*.py"))
STAGE_FILES = {
    *("data", "concepts", "teacher", "rpn", "proposals", "labels", "pairs"),
    *("pretrain", "finetune", "evaluate", "report"),
}
RAY = {"ray_backend", "ray_workers", "ray_training"}
# What `regionclip --help` and `status` import: nothing slow at the top of these.
QUICK = {
    *(ROOT / "regionclip_core" / "config").glob("*.py"),
    *(ROOT / "regionclip_core" / "storage" / f"{name}.py" for name in ("records", "folder")),
    *(path for path in STAGES if path.stem not in RAY and path.parent.name != "commands"),
    *(ROOT / "stages" / "commands" / f"{name}.py" for name in ("verify", "gc", "show", "detect", "finished", "export")),
}
SLOW = {"torch", "torchvision", "open_clip", "spacy", "ray", "pyarrow", "webdataset", "matplotlib", "rich"}


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Dotted modules that a file imports; with top_only those that run when the file is imported."""
    found = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
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


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_core_knows_nothing_of_the_frame(path: Path) -> None:
    assert not packages(path) & {"ray", "typer", "stages"}


@pytest.mark.parametrize("path", STAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_and_typer_stay_in_their_files(path: Path) -> None:
    assert "ray" not in packages(path) or path.stem in RAY
    assert "typer" not in packages(path) or path.name == "cli.py"


@pytest.mark.parametrize("path", [p for p in STAGES if p.stem in STAGE_FILES], ids=lambda p: p.stem)
def test_a_stage_imports_no_other_stage_and_no_frame_but_base(path: Path) -> None:
    others = {name for name in imports(path) if name.startswith("stages.")}
    assert not {name for name in others if not f"{name}.".startswith("stages.base.")}


@pytest.mark.parametrize("path", sorted(QUICK), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_the_command_line_imports_is_quick(path: Path) -> None:
    assert not packages(path, top_only=True) & SLOW
