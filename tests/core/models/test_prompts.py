"""Templates and filling against the official token ids; averaging against a plain loop."""

import json

import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER

from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.clip import create_clip
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.prompts import embed_texts, fill_template

GOLDEN = json.loads((GOLDEN_FOLDER / "tokenizer.json").read_text())


@pytest.fixture(scope="module")
def clip():
    config = ClipArchitecture(vision_width=8, embed_dim=16, text_width=16, text_heads=2)
    return create_clip(TeacherConfig(weights="random", architecture=config), seed=3)


def test_clip81_gives_the_official_tokens():
    from open_clip.tokenizer import SimpleTokenizer

    templates = prompt_templates("clip81")
    assert len(templates) == GOLDEN["n_templates"] == 81
    assert list(templates[:3]) == GOLDEN["first_templates"]
    tokenizer = SimpleTokenizer(context_length=77)
    expected = GOLDEN["hot_dog_sausage_all_templates_ids"]
    for template, ids in zip(templates, expected, strict=True):
        row = tokenizer([fill_template(template, "hot dog, sausage")])[0].tolist()
        assert row[: len(ids)] == ids
        assert not any(row[len(ids) :])


@pytest.mark.parametrize("case", GOLDEN["prompt_engineering_examples"])
def test_filling_is_the_official_rule(case):
    assert fill_template(case["template"], case["name"]) == case["result"]


def test_braces_in_a_name_are_left_alone():
    assert fill_template("a {}.", "{0} {x}") == "a {0} {x}."


@pytest.mark.parametrize("spec", ["single", "short", "clip81"])
def test_built_in_templates_are_distinct(spec):
    templates = prompt_templates(spec)
    assert len(set(templates)) == len(templates)
    assert all(template.count("{}") == 1 for template in templates)


def test_template_files(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# comment\n\n a {} here \nthe {}\n")
    assert prompt_templates(str(path)) == ("a {} here", "the {}")
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes("# café\r\na {} in a café\r\n".encode(encoding))
        assert prompt_templates(str(path)) == ("a {} in a café",)
    path.write_bytes("a {}\na {} in a café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.txt, line 2: byte 0xe9 is not UTF-8"):
        prompt_templates(str(path))
    path.write_text("a {}\nno name\n")
    with pytest.raises(ValueError, match="no name"):
        prompt_templates(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="no template"):
        prompt_templates(str(path))
    with pytest.raises(FileNotFoundError, match="clip81"):
        prompt_templates("clip80")


@pytest.mark.parametrize("batch_size", [1, 4, 256])
@pytest.mark.parametrize("normalize", [True, False])
def test_averaging(clip, normalize, batch_size):
    names, templates = ["cat", "red car", "salt+pepper"], ("{}.", "a photo of a {}.", "the {}", "a {} here", "many {}")
    rows = []
    for name in names:
        rows.append(torch.zeros(16))
        for template in templates:
            feature = clip.encode_text([fill_template(template, name)])[0].detach()
            rows[-1] += (feature / feature.norm() if normalize else feature) / len(templates)
        if normalize:
            rows[-1] /= rows[-1].norm()
    actual = embed_texts(clip, names, templates, normalize, batch_size)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, torch.stack(rows), atol=1e-6, rtol=1e-5)


def test_no_names(clip):
    assert embed_texts(clip, [], ("{}",), True).shape == (0, 16)
