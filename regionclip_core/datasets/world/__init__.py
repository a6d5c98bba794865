"""The embedded world: images, captions and boxes drawn by a program, with no download."""

from regionclip_core.datasets.world.categories import CATEGORIES, Category, base_names, novel_names
from regionclip_core.datasets.world.sample import WORLD_VERSION, WorldSample, make_sample

__all__ = ["CATEGORIES", "WORLD_VERSION", "Category", "WorldSample", "base_names", "make_sample", "novel_names"]
