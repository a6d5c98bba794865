"""Writes CONFIG.md, every key of the configuration, from its types and docstrings: python docs/config.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regionclip_core.config.tree import Config

PAGE = Path(__file__).parent / "CONFIG.md"
SCHEMA: dict[str, Any] = Config.model_json_schema()
OPTIM = "OptimConfig"
"""The section that several trainings have: one table for all of them."""

HEAD = """\
# Every key of the configuration

Written by `python docs/config.py` from the code; `tests/core/config/test_schema.py` fails while the page is old.
[pipeline.yaml](../pipeline.yaml) is a whole config with comments, [data/README.md](../data/README.md) explains the
kinds of splits, and `regionclip init` writes a config for data of your own.

`regionclip config` prints a config with all its defaults; `--set a.b=c` overrides one key of any command.
`regionclip config --schema` prints the JSON Schema, which is kept in `stages/presets/config.schema.json`. A file whose
first line is `# yaml-language-server: $schema=PATH` is completed and checked by editors (VS Code with the YAML
extension, and others with yaml-language-server).

## Several files

`--config A --config B` merges files, and so does `extends: A` in the file B: A first, then what B says.

- Sections are merged key by key; so are mappings such as `concepts.merge` and `data.splits`, whose entries are merged
  too. A key that only A has stays.
- Anything else replaces what was there. Lists do too: `concepts.splits: [a]` after `[b, c]` is `[a]`.
- A split of another `source` replaces the whole split, since each source has keys of its own. Other sections that have
  a key `source` (`labels`, `evaluate.fusion`) are merged as all sections are.
- `null` is a value: `teacher.training: null` removes that section.
- A file that `extends` another one stands for both. After it, `--config` goes on with the next file, and `--set` comes
  last.
- `regionclip config` shows beside each key of a later file which one it is from, `run` says in which order files were
  merged, and a mistake is shown with its file.

Relative paths in a config start from where `regionclip` runs; only the file that `extends` names is looked for beside
the file that names it.

## The run

"""


TABLE = "| key | values | default | description |\n|---|---|---|---|\n"
TEMPLATE = """
{level} {title}

{text}

{table}"""
LIMITS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "and below"}
HIGHEST = 10**9
"""From here on an upper limit only catches typing mistakes, and is left out."""


def definition(node: Mapping[str, Any]) -> str | None:
    """Return the name of the section that a setting is; None for any other setting."""
    return next((one["$ref"].split("/")[-1] for one in (node, *node.get("anyOf", ())) if "$ref" in one), None)


def values(node: Mapping[str, Any]) -> str:
    """Return the type and the allowed values of a setting."""
    if "anyOf" in node:
        kinds = [values(one) for one in node["anyOf"] if one.get("type") != "null"]
        return " or ".join(kinds) + ", or null" * (len(kinds) < len(node["anyOf"]))
    if "$ref" in node:
        return "a section"
    if "const" in node or "enum" in node:
        return ", ".join(f"`{word}`" for word in node.get("enum") or [node["const"]])
    if node["type"] == "array":
        of = node["prefixItems"][0] if "prefixItems" in node else node["items"]
        many = f" of {node['minItems']}" if "prefixItems" in node else " of at least one" * ("minItems" in node)
        return f"a list{many}: {values(of)}"
    if node["type"] == "object":
        return "a mapping"
    kind = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}[node["type"]]
    limits = " ".join(
        f"{word} {int(node[key]):,}" if float(node[key]).is_integer() else f"{word} {node[key]}"
        for key, word in LIMITS.items()
        if node.get(key, HIGHEST) < HIGHEST
    )
    several = f"a multiple of {node['multipleOf']}" if "multipleOf" in node else ""
    return ", ".join(filter(None, [kind, limits, several]))


def default(node: Mapping[str, Any]) -> str:
    """Return the default of a setting; of a section what differs from the section's own."""
    if "default" not in node:
        return "required"
    if "$ref" in node:
        own = SCHEMA["$defs"][definition(node)]["properties"]
        changed = {key: one for key, one in sorted(node["default"].items()) if one != own[key].get("default")}
        return ", ".join(f"`{key}: {json.dumps(one)}`" for key, one in changed.items())
    return f"`{node['default'] if isinstance(node['default'], str) else json.dumps(node['default'])}`"


def cell(text: str) -> str:
    """Return a text in one line that a table may hold; outside of code, < begins no tag."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if n % 2 else part.replace("<", "\\<") for n, part in enumerate(parts))


def table(section: Mapping[str, Any], prefix: str) -> str:
    """Return the table of a section's own keys."""
    text = TABLE
    for key, node in section["properties"].items():
        name, meaning = definition(node), node["description"]
        if name is not None:  # as GitHub makes an anchor of a heading
            meaning += f" [Its keys](#{'optim' if name == OPTIM else f'{prefix}{key}'.replace('.', '')})"
        cells = [cell(one) for one in (values(node), default(node), meaning)]
        text += f"| `{prefix}{key}` | {' | '.join(cells)} |\n"
    return text


def part(title: str, name: str, prefix: str, level: str = "###") -> str:
    """Return a section's heading, what it is, and its table."""
    section = SCHEMA["$defs"][name]
    return TEMPLATE.format(level=level, title=title, text=cell(section["description"]), table=table(section, prefix))


def parts(section: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the parts of the page about the sections in a section, each before those in it."""
    for key, node in section["properties"].items():
        name, path = definition(node), f"{above}{key}"
        if name is not None and name != OPTIM:
            yield part(path, name, f"{path}.", "###" if above else "##")
            yield from parts(SCHEMA["$defs"][name], f"{path}.")
        if path == "data.splits":
            for source, ref in node["additionalProperties"]["discriminator"]["mapping"].items():
                yield part(f"{path}, source: {source}", ref.split("/")[-1], f"{path}.NAME.")


def page() -> str:
    """Return the whole page."""
    return HEAD + table(SCHEMA, "") + "".join(parts(SCHEMA)) + part("optim", OPTIM, "optim.", "##")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
