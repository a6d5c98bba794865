"""The 65 categories of the world: 48 base ones, whose boxes may be learned, and 17 novel ones.

Every novel category has a base one that it is easily taken for (mug and cup, violin and guitar, truck and bus, ...),
so that a detector can't recognise novel things by their looks alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from regionclip_core.datasets.world import icons_animals as animals
from regionclip_core.datasets.world import icons_food as food
from regionclip_core.datasets.world import icons_home as home
from regionclip_core.datasets.world import icons_things as things
from regionclip_core.datasets.world import icons_vehicles as vehicles
from regionclip_core.datasets.world.drawing import Drawing, Points

ANY = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
PAINT = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray")
FUR = ("brown", "gray", "white", "black", "orange", "yellow")
WARM = ("red", "orange", "yellow", "pink", "brown")
METAL = ("gray", "brown", "yellow", "black", "red", "blue")


@dataclass(frozen=True)
class Category:
    """One kind of object."""

    name: str
    plural: str
    novel: bool
    colours: tuple[str, ...]
    """Names of its possible main colours; keys of palette.NAMED."""
    icon: Callable[[Drawing], None]


def _category(name: str, colours: tuple[str, ...], icon: Callable[[Drawing], None]) -> Category:
    return Category(name, _PLURALS.get(name, name + "s"), name in _CONFUSABLE, colours, icon)


_PLURALS = {
    "bench": "benches", "bus": "buses", "butterfly": "butterflies", "cactus": "cacti", "dress": "dresses",
    "fish": "fish", "strawberry": "strawberries", "wine glass": "wine glasses",
}  # fmt: skip
_CONFUSABLE = {
    "mug": "cup", "violin": "guitar", "truck": "bus", "dog": "cat", "pear": "apple", "crown": "hat", "vase": "bottle",
    "spoon": "fork", "cactus": "tree", "tent": "umbrella", "candle": "lamp", "bench": "chair", "whale": "fish",
    "rocket": "airplane", "duck": "bird", "dress": "shirt", "castle": "house",
}  # fmt: skip
"""Every novel category, with the base one that it is easily taken for."""

CATEGORIES: tuple[Category, ...] = (
    _category("cat", FUR, animals.cat),
    _category("dog", FUR, animals.dog),
    _category("fish", PAINT, animals.fish),
    _category("whale", ("blue", "gray", "black", "purple", "white"), animals.whale),
    _category("bird", ANY, animals.bird),
    _category("duck", ("yellow", "white", "brown", "gray", "green", "orange"), animals.duck),
    _category("rabbit", (*FUR, "pink"), animals.rabbit),
    _category("turtle", ("green", "brown", "orange", "purple", "blue"), animals.turtle),
    _category("snail", (*WARM, "purple", "green", "blue"), animals.snail),
    _category("butterfly", PAINT, animals.butterfly),
    _category("car", ANY, vehicles.car),
    _category("bus", PAINT, vehicles.bus),
    _category("truck", PAINT, vehicles.truck),
    _category("train", ANY, vehicles.train),
    _category("bicycle", PAINT, vehicles.bicycle),
    _category("boat", ANY, vehicles.boat),
    _category("airplane", PAINT, vehicles.airplane),
    _category("rocket", PAINT, vehicles.rocket),
    _category("hot air balloon", PAINT, vehicles.hot_air_balloon),
    _category("traffic light", ("black", "gray", "green", "yellow", "blue"), things.traffic_light),
    _category("apple", ("red", "green", "yellow"), food.apple),
    _category("pear", ("green", "yellow", "brown", "red"), food.pear),
    _category("banana", ("yellow", "green", "brown"), food.banana),
    _category("strawberry", ("red", "pink", "orange", "purple", "white"), food.strawberry),
    _category("carrot", ("orange", "purple", "yellow", "red"), food.carrot),
    _category("mushroom", (*WARM, "purple"), food.mushroom),
    _category("cake", ("pink", "brown", "white", "yellow", "purple", "green"), food.cake),
    _category("pizza", ("yellow", "orange", "red", "white", "green"), food.pizza),
    _category("cup", PAINT, food.cup),
    _category("mug", ANY, food.mug),
    _category("teapot", ANY, food.teapot),
    _category("wine glass", ("red", "yellow", "pink", "purple", "orange"), food.wine_glass),
    _category("bottle", ("green", "brown", "blue", "white", "red", "purple"), food.bottle),
    _category("fork", ANY, food.fork),
    _category("spoon", ANY, food.spoon),
    _category("lamp", ANY, home.lamp),
    _category("candle", ANY, home.candle),
    _category("vase", ANY, home.vase),
    _category("chair", ANY, home.chair),
    _category("bench", ANY, home.bench),
    _category("clock", ANY, home.clock),
    _category("key", METAL, home.key),
    _category("book", ANY, home.book),
    _category("laptop", ("gray", "white", "black", "pink", "blue"), home.laptop),
    _category("camera", ("black", "gray", "red", "blue", "brown", "green"), home.camera),
    _category("umbrella", ANY, home.umbrella),
    _category("hammer", (*WARM, "blue", "black", "green"), home.hammer),
    _category("ladder", (*METAL, "orange", "green"), home.ladder),
    _category("house", PAINT, home.house),
    _category("castle", ("gray", "brown", "pink", "yellow", "white", "blue", "purple"), home.castle),
    _category("tent", PAINT, things.tent),
    _category("hat", ANY, things.hat),
    _category("crown", ("yellow", "orange", "gray", "pink", "blue", "red"), things.crown),
    _category("shirt", ANY, things.shirt),
    _category("dress", ANY, things.dress),
    _category("sock", ANY, things.sock),
    _category("shoe", ANY, things.shoe),
    _category("flower", ("red", "orange", "yellow", "blue", "purple", "pink", "white"), things.flower),
    _category("tree", ("green", "orange", "yellow", "red", "pink"), things.tree),
    _category("cactus", ("green", "blue", "gray"), things.cactus),
    _category("guitar", ANY, things.guitar),
    _category("violin", ("brown", "orange", "red", "black", "yellow", "purple", "blue"), things.violin),
    _category("drum", PAINT, things.drum),
    _category("bell", ("yellow", "orange", "gray", "brown", "red", "green", "pink"), things.bell),
    _category("kite", PAINT, things.kite),
)


@cache
def icon_polygons(category: Category) -> tuple[tuple[str, ...], tuple[Points, ...]]:
    """Return roles and polygons (float64[n, 2], icon units around the centre) of a category's drawing."""
    drawing = Drawing()
    category.icon(drawing)
    return tuple(drawing.roles), tuple(points - 50.0 for points in drawing.polygons)
