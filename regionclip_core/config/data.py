"""Settings of what goes in: the splits by their sources, the categories, and the concept pool from captions."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from regionclip_core.config.section import Count, Listed, Section

ObjectCount = Annotated[int, Field(ge=1, le=100)]
ObjectShare = Annotated[float, Field(gt=0, le=0.9)]
DroppedWords = Literal["relational", "partitive", "image", "time", "abstract"]


class WorldSplit(Section):
    """Images of the embedded world, drawn by the project itself."""

    source: Literal["world"] = "world"
    """What kind of split it is; each kind has keys of its own."""
    kind: Literal["closeup", "scene"] = "scene"
    """`closeup`: one to three large objects, as in web images. `scene`: several small objects, as in COCO."""
    images: Count
    """Number of images."""
    image_size: int = Field(128, ge=32, le=1024)
    """Side of the square image, in pixels."""
    objects: Listed[tuple[ObjectCount, ObjectCount]] = (3, 7)
    """Fewest and most objects per image (`scene` only)."""
    object_size: Listed[tuple[ObjectShare, ObjectShare]] = (0.11, 0.24)
    """Smallest and largest object, as a share of the image side (`scene` only); at least 8 pixels."""

    @field_validator("objects", "object_size")
    @classmethod
    def _in_order(cls, ends: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        if ends[0] > ends[1]:
            raise ValueError(f"expected the smaller value first (came: {list(ends)}); write {[ends[1], ends[0]]}")
        return ends


class TarsSplit(Section):
    """WebDataset tars in img2dataset's layout: `<key>.jpg`, `<key>.txt`, `<key>.json`."""

    source: Literal["tars"]
    """What kind of split it is."""
    urls: str
    """Path or fsspec URL, with `*` globs or `{00000..00099}` braces."""


class CocoSplit(Section):
    """COCO-style annotations beside a folder of images."""

    source: Literal["coco"]
    """What kind of split it is."""
    images: str
    """Folder (or fsspec URL) that holds the images by their `file_name`."""
    instances: str | None = None
    """instances_*.json, for boxes."""
    captions: str | None = None
    """captions_*.json, for captions."""
    masks: bool = False
    """Also read segmentation masks, for `finetune.mask_head` and mask AP."""
    limit: Count | None = None
    """Take only the first images, in the order of the file."""


class LvisSplit(Section):
    """LVIS v1 annotations beside COCO's image folders."""

    source: Literal["lvis"]
    """What kind of split it is."""
    images: str
    """Folder (or fsspec URL) that holds COCO's train2017/ and val2017/, from which LVIS draws its images."""
    instances: str
    """lvis_v1_*.json."""
    captions: str | None = None
    """COCO's captions_*.json, for captions of the same images."""
    masks: bool = True
    """Also read segmentation masks, for `finetune.mask_head` and mask AP."""
    limit: Count | None = None
    """Take only the first images, in the order of the file."""


class FolderSplit(Section):
    """A folder of images and one caption file."""

    source: Literal["folder"]
    """What kind of split it is."""
    images: str
    """Folder (or fsspec URL) of images."""
    captions: str
    """.jsonl, .csv, .tsv or .parquet with the fields `file` and `caption`; an image may have several rows."""


Split = Annotated[WorldSplit | TarsSplit | CocoSplit | LvisSplit | FolderSplit, Field(discriminator="source")]


class DataConfig(Section):
    """What goes in: named splits of images, and the categories that detection is measured on."""

    splits: dict[str, Split] = Field({}, min_length=1)
    """Splits by name; the other stages choose theirs by these names."""
    categories: str = "world"
    """`world`, a name under data/ (`coco_ovd`), a YAML/JSON file with `base:` and `novel:` lists, a COCO
    annotation file (all its categories are base), or an LVIS one (rare categories are novel, the others base)."""
    shard_size: Count = 500
    """Images per shard (tars keep the shards they come in)."""


class ConceptsConfig(Section):
    """Captions to a concept pool (paper section 3.2)."""

    splits: Listed[tuple[str, ...]] = ()
    """Splits whose captions are parsed."""
    parser: Literal["auto", "spacy", "rules"] = "auto"
    """`spacy`: an installed pipeline. `rules`: the built-in caption parser. `auto`: the first that is installed."""
    spacy_model: str = "en_core_web_sm"
    """Name or path for spacy.load; never downloaded."""
    min_count: Count = 100
    """Concepts with a smaller count are dropped (the paper's CC3M pool: 100)."""
    count_unit: Literal["caption", "image"] = "caption"
    """Whether a concept's count is of captions or of images."""
    multiword: Literal["head", "compound", "both"] = "both"
    """Keep the head noun, the full compound, or both."""
    max_words: Count = 3
    """A compound of more words counts for its head noun only."""
    merge: dict[str, str] = Field({"people": "person"})
    """Lemmas that count as another one."""
    drop: Listed[tuple[DroppedWords, ...]] = get_args(DroppedWords)
    """Classes of words that make no concept."""
    protect_categories: bool = False
    """Never drop a category name as a class of words; it must still be in the captions, `min_count` times."""
    max_concepts: Count | None = None
    """Keep only the most frequent ones."""

    @field_validator("spacy_model")
    @classmethod
    def _spacy_is_local(cls, name: str) -> str:
        if "://" in name:  # spaCy opens folders only
            raise ValueError(
                f"expected the name of an installed pipeline or the path of one on this machine, came {name!r}; copy "
                "it to a disk"
            )
        return name
