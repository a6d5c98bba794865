"""Sheets of pictures that show the world to a person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from regionclip_core.datasets.world.categories import CATEGORIES, icon_polygons
from regionclip_core.datasets.world.palette import NAMED, distance, role_colours
from regionclip_core.datasets.world.sample import WorldSample
from regionclip_core.datasets.world.sprites import Pose, rasterise


def contact_sheet(side: int = 104, columns: int = 10) -> Image.Image:
    """Draw all categories, upright, with their names; novel ones on a tinted ground.

    Args:
        side: longer side of each drawing, pixels.
        columns: drawings per row.
    """
    cell = side + 16
    rows = -(-len(CATEGORIES) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + 14)), (226, 226, 222))
    pen = ImageDraw.Draw(sheet)
    rng = np.random.Generator(np.random.PCG64(1))
    for number, category in enumerate(CATEGORIES):
        x, y = number % columns * cell, number // columns * (cell + 14)
        ground = (216, 226, 240) if category.novel else (240, 240, 236)
        pen.rectangle((x + 2, y + 2, x + cell - 3, y + cell + 11), fill=ground)
        main = NAMED[category.colours[number % len(category.colours)]]
        others = [colour for colour in NAMED.values() if distance(colour, main) > 150]
        colours = role_colours(rng, main, others[number % len(others)])
        outline = (30, 30, 36) if number % 2 else None
        tile = rasterise(*icon_polygons(category), Pose(1, 0, 0, 1), side, colours, outline)
        sheet.paste(tile, (x + (cell - tile.width) // 2, y + 6 + (side - tile.height) // 2), tile)
        pen.text((x + 6, y + cell - 4), category.name, fill=(20, 20, 20))
    return sheet


def sample_grid(samples: Sequence[WorldSample], scale: int = 3, columns: int = 4, boxes: bool = True) -> Image.Image:
    """Draw samples side by side, `scale` times as large, with their boxes."""
    side = samples[0].image.shape[0] * scale + 4
    sheet = Image.new("RGB", (columns * side, -(-len(samples) // columns) * side), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        x, y = number % columns * side, number // columns * side
        image = Image.fromarray(sample.image)
        sheet.paste(image.resize((side - 4, side - 4), Image.Resampling.NEAREST), (x, y))
        for x0, y0, x1, y1 in sample.boxes.tolist() if boxes else []:
            edges = (x + x0 * scale, y + y0 * scale, x + x1 * scale - 1, y + y1 * scale - 1)
            pen.rectangle(edges, outline=(255, 0, 255))
    return sheet
