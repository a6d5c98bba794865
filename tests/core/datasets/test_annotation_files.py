"""Annotation files joined by image, against a naive join of the whole files."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from regionclip_core.datasets.annotation_files import join_annotations


def file_name(image: dict[str, Any]) -> str | None:
    return image.get("file_name")


def write(path: Path, seed: int, images_first: bool) -> dict[str, Any]:
    """Images with repeated ids and names, odd ids, and annotations of images that the file does not list."""
    rng = np.random.default_rng(seed)
    ids: list[Any] = [*rng.integers(0, 30, 25).tolist(), "text", 2.5, None, [1, 2]]
    images = [{"id": ids[i], "file_name": f"é{rng.integers(40)}.jpg"} for i in rng.permutation(len(ids))]
    annotations: list[Any] = [
        {"image_id": ids[rng.integers(len(ids))], "id": i, "category_id": [3, 3.0, "3", "x"][i % 4]} for i in range(200)
    ]
    annotations += [{"image_id": 999, "id": 200}, {"id": 201}, "no object", {"image_id": {"a": 1}, "id": 202}]
    body = {"images": images, "annotations": [annotations[i] for i in rng.permutation(len(annotations))]}
    body["categories"] = [{"id": 3, "name": "cat"}, {"id": "x", "name": "é"}]
    keys = ["images", "annotations", "categories"] if images_first else ["annotations", "categories", "images"]
    path.write_text(json.dumps({key: body[key] for key in keys}, ensure_ascii=images_first))
    return body


def naive(bodies: list[dict[str, Any]], every_image: bool) -> list[tuple[Any, bool, bool, list[list[Any]]]]:
    """(image, duplicate, whether images of other names have its id, its annotations in each file)."""
    images = list(bodies[0]["images"])
    for body in bodies[1:] if every_image else []:
        images += [image for image in body["images"] if all(image["id"] != one["id"] for one in images)]
    result = []
    for i, image in enumerate(images):
        before = images[:i]
        again = any(image["id"] == one["id"] or image["file_name"] == one["file_name"] for one in before)
        first = all(image["id"] != one["id"] for one in before)
        mine = [
            [a for a in body["annotations"] if isinstance(a, dict) and "image_id" in a and a["image_id"] == image["id"]]
            for body in bodies
        ]
        shared = any(image["id"] == one["id"] and image["file_name"] != one["file_name"] for one in images)
        result.append((image, again, shared, mine if first else [[] for _ in bodies]))
    return result


def naive_lost(bodies: list[dict[str, Any]]) -> int:
    listed = [image["id"] for body in bodies for image in body["images"]]
    entries = [entry for body in bodies for entry in body["annotations"]]
    return sum(not isinstance(e, dict) or "image_id" not in e or e["image_id"] not in listed for e in entries)


def joined(
    urls: list[str], every_image: bool = True, limit: int | None = None
) -> tuple[list[tuple[Any, bool, bool, list[list[Any]]]], dict[str, Any]]:
    """As `naive`, and the facts as they are stored."""
    kinds = [f"kind{i}" for i in range(len(urls))]
    documents, facts = join_annotations(dict(zip(kinds, urls, strict=True)), file_name, every_image, limit)
    found = [json.loads(one.decode("utf-8", "surrogateescape")) for one in documents]
    rows = [(one["image"], one["duplicate"], one["shared"], [one[kind] for kind in kinds]) for one in found]
    return rows, json.loads(json.dumps(facts))


@pytest.mark.parametrize("every_image", [True, False])
def test_against_a_naive_join(tmp_path, every_image: bool) -> None:
    for seed in range(5):
        paths = [tmp_path / f"{seed}{part}.json" for part in "ab"]
        bodies = [write(path, 2 * seed + i, images_first=i == 0) for i, path in enumerate(paths)]
        urls = [str(path) for path in paths]
        found, facts = joined(urls, every_image)
        assert found == naive(bodies, every_image)
        assert facts["lost"] == naive_lost(bodies)
        assert facts["categories"] == {kind: [[3, "cat"], ["x", "é"]] for kind in ("kind0", "kind1")}
        assert [dict(map(tuple, boxes)) for boxes in facts["boxes"].values()] == [{3: 150, "x": 50}] * 2
        assert joined(urls, every_image, limit=7) == (found[:7], facts)


def test_remote_files(tmp_path) -> None:
    local = tmp_path / "x.json"
    write(local, 0, images_first=True)
    url = f"memory://{tmp_path.name}/x.json"
    fsspec.filesystem("memory").pipe(url, local.read_bytes())
    assert joined([url]) == joined([str(local)])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"images": []}', "the lists `images` and `annotations`"),
        ('{"images": [], "annotations": {}}', "the lists `images` and `annotations`"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "categories with `id` and `name`"),
        ('{"images": [], "annotations": [], "categories": [7]}', "categories with `id` and `name`"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "x.json: the categories 'a' and 'b' both have the id 1",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, text: str, match: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        joined([str(tmp_path / "x.json")])


def test_swapped_files_are_named(tmp_path) -> None:
    """An instances file has categories, a captions file captions; one without any annotation passes."""
    write(tmp_path / "x.json", 0, images_first=True)
    body = json.loads((tmp_path / "x.json").read_text())
    instances, captions = tmp_path / "i.json", tmp_path / "c.json"
    of_image = {"image_id": body["images"][0]["id"]}
    captions.write_text(json.dumps({"images": body["images"], "annotations": [{**of_image, "caption": "a cat"}]}))
    instances.write_text(json.dumps({**body, "annotations": [{**of_image, "category_id": 3}]}))
    swapped = {"instances": str(captions), "captions": str(instances)}
    for kind, file in swapped.items():
        other = "captions" if kind == "instances" else "instances"
        with pytest.raises(ValueError, match=rf"^{kind}: .*{file}.*this looks like an? {other} file"):
            join_annotations({kind: file}, lambda image: image.get("file_name"), True)
    right = {"instances": str(instances), "captions": str(captions)}
    assert join_annotations(right, lambda image: image.get("file_name"), True)[1]["lost"] == 0


def test_a_category_that_is_listed_twice_is_one(tmp_path) -> None:
    (tmp_path / "x.json").write_text(
        '{"images": [], "annotations": [], "categories": [%s, %s]}' % (('{"id": 1, "name": "a"}',) * 2)
    )
    assert joined([str(tmp_path / "x.json")])[1]["categories"] == {"kind0": [[1, "a"]]}


def test_annotations_of_other_images_are_refused(tmp_path) -> None:
    """The message has both files' ids; one annotation that belongs is enough."""
    urls = [str(tmp_path / name) for name in ("a.json", "b.json")]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(7)]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": []}))
    others = [{"image_id": f"00{number}"} for number in range(9)]
    cases = {
        r"9 .*`image_id` are '000', '001', '002', '003', '004', \.\.\., .*`id` are 0, 1, 2, 3, 4, \.\.\.": others,
        r"3 .*they name no `image_id`": [{}, "no object", {"id": 4}],
    }
    for message, entries in cases.items():
        (tmp_path / "b.json").write_text(json.dumps({"images": images[:1], "annotations": entries}))
        with pytest.raises(ValueError, match=r"b\.json: none of its " + message):
            joined(urls)
        body = {"images": images[:1], "annotations": [*entries, {"image_id": 6}]}
        (tmp_path / "b.json").write_text(json.dumps(body))
        assert joined(urls)[1]["lost"] == len(entries)


def test_images_without_usable_ids_do_not_make_a_file_foreign(tmp_path) -> None:
    body = {"images": [{"id": float("nan"), "file_name": "a.jpg"}, None], "annotations": [{"image_id": 1}]}
    (tmp_path / "x.json").write_text(json.dumps(body))
    found, facts = joined([str(tmp_path / "x.json")])
    assert (len(found), facts["lost"]) == (2, 1)


def test_annotations_of_images_that_are_left_out_are_not_lost(tmp_path) -> None:
    urls = [str(tmp_path / name) for name in ("a.json", "b.json")]
    entry = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    (tmp_path / "a.json").write_text(json.dumps({"images": entry[:1], "annotations": []}))
    body = {"images": entry, "annotations": [{"image_id": number} for number in (0, 1, 2, 3)]}
    (tmp_path / "b.json").write_text(json.dumps(body))
    found, facts = joined(urls, every_image=False)
    assert (len(found), facts["lost"]) == (1, 1)


def test_masks_take_no_memory(tmp_path) -> None:
    """Annotations of a kilobyte each are on disk while they are joined."""
    path = tmp_path / "x.json"
    outline = ", ".join(["123.45"] * 120)
    with path.open("w") as file:
        file.write('{"images": [' + ", ".join(f'{{"id": {i}, "file_name": "{i}"}}' for i in range(100)))
        file.write('], "annotations": [')
        file.write(", ".join(f'{{"image_id": {i % 100}, "segmentation": [[{outline}]]}}' for i in range(12_000)))
        file.write('], "categories": [{"id": 1, "name": "a"}]}')
    tracemalloc.start()
    documents, _ = join_annotations({"instances": str(path)}, file_name, True)
    assert sum(1 for _ in documents) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak < 6_000_000  # the window of 1 MiB, four times while it moves, and 12,000 x 40 bytes
