"""The 65 categories of the world: 48 base ones, whose boxes may be learned, and 17 novel ones.

Every novel category has a base one that it is easily taken for (mug and cup, violin and guitar, truck and bus, ...),
so that a detector can't tell novel things by their looks alone.
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
    """One kind of object: its names, its group, which side of the split it is on, its colours and its drawing."""

    name: str
    plural: str
    group: str
    novel: bool
    colours: tuple[str, ...]
    """Names of the main colours that it comes in; keys of palette.NAMED."""
    icon: Callable[[Drawing], None]


def _category(name: str, group: str, colours: tuple[str, ...], icon: Callable[[Drawing], None]) -> Category:
    return Category(name, _PLURALS.get(name, name + "s"), group, name in _NOVEL, colours, icon)


_PLURALS = {
    "bench": "benches",
    "bus": "buses",
    "butterfly": "butterflies",
    "cactus": "cacti",
    "dress": "dresses",
    "fish": "fish",
    "strawberry": "strawberries",
    "wine glass": "wine glasses",
}
_CONFUSABLE = (
    ("mug", "cup"),
    ("violin", "guitar"),
    ("truck", "bus"),
    ("dog", "cat"),
    ("pear", "apple"),
    ("crown", "hat"),
    ("vase", "bottle"),
    ("spoon", "fork"),
    ("cactus", "tree"),
    ("tent", "umbrella"),
    ("candle", "lamp"),
    ("bench", "chair"),
    ("whale", "fish"),
    ("rocket", "airplane"),
    ("duck", "bird"),
    ("dress", "shirt"),
    ("castle", "house"),
)
"""Every novel category with the base one that it is easily taken for."""
_NOVEL = frozenset(novel for novel, _ in _CONFUSABLE)

CATEGORIES: tuple[Category, ...] = (
    _category("cat", "animal", FUR, animals.cat),
    _category("dog", "animal", FUR, animals.dog),
    _category("fish", "animal", PAINT, animals.fish),
    _category("whale", "animal", ("blue", "gray", "black", "purple", "white"), animals.whale),
    _category("bird", "animal", ANY, animals.bird),
    _category("duck", "animal", ("yellow", "white", "brown", "gray", "green", "orange"), animals.duck),
    _category("rabbit", "animal", (*FUR, "pink"), animals.rabbit),
    _category("turtle", "animal", ("green", "brown", "orange", "purple", "blue"), animals.turtle),
    _category("snail", "animal", (*WARM, "purple", "green", "blue"), animals.snail),
    _category("butterfly", "animal", PAINT, animals.butterfly),
    _category("car", "vehicle", ANY, vehicles.car),
    _category("bus", "vehicle", PAINT, vehicles.bus),
    _category("truck", "vehicle", PAINT, vehicles.truck),
    _category("train", "vehicle", ANY, vehicles.train),
    _category("bicycle", "vehicle", PAINT, vehicles.bicycle),
    _category("boat", "vehicle", ANY, vehicles.boat),
    _category("airplane", "vehicle", PAINT, vehicles.airplane),
    _category("rocket", "vehicle", PAINT, vehicles.rocket),
    _category("hot air balloon", "vehicle", PAINT, vehicles.hot_air_balloon),
    _category("traffic light", "street", ("black", "gray", "green", "yellow", "blue"), things.traffic_light),
    _category("apple", "food", ("red", "green", "yellow"), food.apple),
    _category("pear", "food", ("green", "yellow", "brown", "red"), food.pear),
    _category("banana", "food", ("yellow", "green", "brown"), food.banana),
    _category("strawberry", "food", ("red", "pink", "orange", "purple", "white"), food.strawberry),
    _category("carrot", "food", ("orange", "purple", "yellow", "red"), food.carrot),
    _category("mushroom", "food", (*WARM, "purple"), food.mushroom),
    _category("cake", "food", ("pink", "brown", "white", "yellow", "purple", "green"), food.cake),
    _category("pizza", "food", ("yellow", "orange", "red", "white", "green"), food.pizza),
    _category("cup", "kitchen", PAINT, food.cup),
    _category("mug", "kitchen", ANY, food.mug),
    _category("teapot", "kitchen", ANY, food.teapot),
    _category("wine glass", "kitchen", ("red", "yellow", "pink", "purple", "orange"), food.wine_glass),
    _category("bottle", "kitchen", ("green", "brown", "blue", "white", "red", "purple"), food.bottle),
    _category("fork", "kitchen", ANY, food.fork),
    _category("spoon", "kitchen", ANY, food.spoon),
    _category("lamp", "home", ANY, home.lamp),
    _category("candle", "home", ANY, home.candle),
    _category("vase", "home", ANY, home.vase),
    _category("chair", "home", ANY, home.chair),
    _category("bench", "street", ANY, home.bench),
    _category("clock", "home", ANY, home.clock),
    _category("key", "home", METAL, home.key),
    _category("book", "home", ANY, home.book),
    _category("laptop", "home", ("gray", "white", "black", "pink", "blue"), home.laptop),
    _category("camera", "home", ("black", "gray", "red", "blue", "brown", "green"), home.camera),
    _category("umbrella", "home", ANY, home.umbrella),
    _category("hammer", "tool", (*WARM, "blue", "black", "green"), home.hammer),
    _category("ladder", "tool", (*METAL, "orange", "green"), home.ladder),
    _category("house", "street", PAINT, home.house),
    _category("castle", "street", ("gray", "brown", "pink", "yellow", "white", "blue", "purple"), home.castle),
    _category("tent", "street", PAINT, things.tent),
    _category("hat", "clothing", ANY, things.hat),
    _category("crown", "clothing", ("yellow", "orange", "gray", "pink", "blue", "red"), things.crown),
    _category("shirt", "clothing", ANY, things.shirt),
    _category("dress", "clothing", ANY, things.dress),
    _category("sock", "clothing", ANY, things.sock),
    _category("shoe", "clothing", ANY, things.shoe),
    _category("flower", "plant", ("red", "orange", "yellow", "blue", "purple", "pink", "white"), things.flower),
    _category("tree", "plant", ("green", "orange", "yellow", "red", "pink"), things.tree),
    _category("cactus", "plant", ("green", "blue", "gray"), things.cactus),
    _category("guitar", "music", ANY, things.guitar),
    _category("violin", "music", ("brown", "orange", "red", "black", "yellow", "purple", "blue"), things.violin),
    _category("drum", "music", PAINT, things.drum),
    _category("bell", "music", ("yellow", "orange", "gray", "brown", "red", "green", "pink"), things.bell),
    _category("kite", "toy", PAINT, things.kite),
)
_BY_NAME = {category.name: category for category in CATEGORIES}


def base_names() -> tuple[str, ...]:
    """Names of the 48 base categories, in the order of CATEGORIES."""
    return tuple(category.name for category in CATEGORIES if not category.novel)


def novel_names() -> tuple[str, ...]:
    """Names of the 17 novel categories, in the order of CATEGORIES."""
    return tuple(category.name for category in CATEGORIES if category.novel)


@cache
def icon_polygons(name: str) -> tuple[tuple[str, ...], tuple[Points, ...]]:
    """Roles and polygons (float64[n, 2], icon units around the centre) of a category's drawing.

    Raises:
        KeyError: no such category.
    """
    drawing = Drawing()
    _BY_NAME[name].icon(drawing)
    return tuple(drawing.roles), tuple(points - 50.0 for points in drawing.polygons)
