"""Reading large JSON: the same values and the same errors as json.loads, wherever the window's edges fall."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from regionclip_core.storage import json_lists
from regionclip_core.storage.json_lists import list_entries


def some_value(rng: random.Random, depth: int = 0) -> Any:
    plain = [
        1e-7 * rng.random(),
        rng.randrange(-5, 10**12),
        'é"\\\n',
        "日本 \udc80",
        None,
        True,
        float("inf"),
        "",
        -1.5e300,
    ]
    kind = rng.randrange(12)
    if kind >= 10 and depth < 3:
        return {name: some_value(rng, depth + 1) for name in rng.sample(["a", "é", "images", "]}"], rng.randrange(4))}
    if kind >= 8 and depth < 3:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return rng.choice(plain)


def loads(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogateescape"))


def scanned(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key, text, value in list_entries(str(path)):
        if not text:
            found[key] = []
        else:
            found[key].append(value)
            assert json.loads(text) == value
    return found


@pytest.mark.parametrize("chunk", [1, 3, 64, 1 << 20])
def test_against_json_loads(tmp_path, monkeypatch, chunk: int) -> None:
    """Random objects, whole and with one byte lost, read through windows of all sizes."""
    monkeypatch.setattr(json_lists, "_CHUNK", chunk)
    rng, path, refused = random.Random(chunk), tmp_path / "x.json", 0
    for _ in range(150):
        body = {name: some_value(rng) for name in rng.sample(["info", "images", "annotations", "é"], rng.randrange(5))}
        text = json.dumps(body, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5)
        data = text.encode("utf-8", "surrogateescape")
        cut = rng.randrange(len(data))
        for content in (data, data[:cut] + data[cut + 1 :]):
            path.write_bytes(content)
            try:
                expected = loads(content)
            except ValueError:
                expected = None
            if isinstance(expected, dict):
                assert scanned(path) == {name: value for name, value in expected.items() if isinstance(value, list)}
            else:
                refused += 1
                with pytest.raises(ValueError, match=r"x\.json: not valid JSON: .* at character \d+"):
                    scanned(path)
    assert refused > 20


def test_the_place_of_the_damage_is_told(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"images": [1, 2 3]}')
    with pytest.raises(ValueError, match=r"expected ',' at character 17; .* Fetch the file again"):
        scanned(path)


def test_a_file_without_structure_does_not_fill_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(json_lists, "LARGEST_VALUE", 1 << 12)
    monkeypatch.setattr(json_lists, "_CHUNK", 1 << 10)
    path = tmp_path / "x.json"
    path.write_text('{"images": ["' + "x" * 10_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"at character 12; .* each of at most"):
        list(list_entries(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_entries_of_any_number_take_no_more_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(json_lists, "_CHUNK", 1 << 12)
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"annotations": [{"id": i, "text": "x" * 100} for i in range(20_000)]}))
    tracemalloc.start()
    count = sum(1 for _ in list_entries(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 100_000 < path.stat().st_size


@pytest.mark.parametrize("entry", ["9" * 6_000, "[" * 50_000 + "]" * 50_000])
def test_what_python_cannot_hold_is_an_error_of_the_file(tmp_path, entry: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"images": [1, {entry}]}}')
    with pytest.raises(ValueError, match=r"x\.json: not valid JSON: .* at character 15"):
        scanned(path)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_byte_order_mark_is_left_out(tmp_path, monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(json_lists, "_CHUNK", chunk)
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf {"images": ["\xef\xbb\xbf", 2]}')
    assert scanned(path) == {"images": ["\ufeff", 2]}
