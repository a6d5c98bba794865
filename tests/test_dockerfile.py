"""The Dockerfile, read as Docker does; no Docker is needed, so nothing is built."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KNOWN = {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def of(kind: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == kind]


def test_every_instruction_is_one_of_dockers() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM" and set(names) == KNOWN
    for command in of("RUN"):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_every_copied_source_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = [source for arguments in of("COPY") for source in shlex.split(arguments)[:-1]]
    for source in copied:
        assert (ROOT / source).exists() and not any(fnmatch(source, pattern) for pattern in ignored), source
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = [(ROOT / name).resolve().name for name in hatch["packages"]]  # regionclip_stages is a link to stages
    needed = {*packages, *hatch["force-include"], PROJECT["readme"], *PROJECT["license-files"]}
    assert needed | {"pyproject.toml", "requirements.lock"} == set(copied)


def test_a_user_without_rights_runs_the_command() -> None:
    order = [name for name, _ in instructions()]
    assert of("USER") == ["regionclip"] and "RUN" not in order[order.index("USER") :]
    assert "useradd --create-home regionclip " in of("RUN")[-1]
    [command] = json.loads(of("ENTRYPOINT")[0])
    assert command in PROJECT["scripts"] and json.loads(of("CMD")[0]) == ["--help"]


def test_arguments_of_the_build_choose_torch_and_extras() -> None:
    """As bash expands the line with each value."""
    given = dict(argument.split("=") for argument in of("ARG"))
    assert given["EXTRAS"] in PROJECT["optional-dependencies"]
    [line] = [command for command in of("RUN") if "uv pip install" in command]
    install = line[line.index("uv pip install") : line.rindex("&&")]

    def words(**values: str) -> list[str]:
        call = f"printf '%s\\n' {install}"
        return subprocess.run(
            ["bash", "-c", call], env=values, capture_output=True, text=True, check=True
        ).stdout.split()

    cpu, cuda = words(**given), words(TORCH_BACKEND="", EXTRAS="")
    assert cpu[-3:] == ["--torch-backend", "cpu", "/source[pipeline]"]
    assert cuda[-1] == "/source" and "--torch-backend" not in cuda
    assert re.search(r"uv==([\d.]+)", line)[1] == re.search(r"uv==([\d.]+)", (ROOT / "Makefile").read_text())[1]  # type: ignore[index]
