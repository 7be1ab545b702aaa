"""The words of the procedural world: what can be painted and how people say it.

Every concept has *named* words (what a user who erases it would type), *unnamed* words (the hidden part of the
domain: the benchmark never shows them to an eraser) and *descriptions* that avoid every noun of the concept.
In a description ``{a}`` marks where adjectives go: "the {a}round thing that rolls" -> "the red round thing that rolls".
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("object", "colour", "style")


@dataclass(frozen=True)
class Concept:
    """One thing that the world can paint.

    Args:
        name: the identifier, also the first named word.
        kind: ``object``, ``colour`` or ``style``.
        named: words that a user of an eraser would type.
        unnamed: further words for the same thing, kept from every eraser.
        descriptions: phrases without any noun of the concept.
        look_alike: the object that is drawn most alike, if there is one.
    """

    name: str
    kind: str
    named: tuple[str, ...]
    unnamed: tuple[str, ...]
    descriptions: tuple[str, ...]
    look_alike: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        return self.named + self.unnamed


def _object(
    name: str, named: str, unnamed: str, descriptions: tuple[str, ...], look_alike: str | None = None
) -> Concept:
    return Concept(name, "object", tuple(named.split()), tuple(unnamed.split()), descriptions, look_alike)


OBJECTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        _object(
            "ball", "ball sphere", "orb globe", ("the {a}round thing that rolls", "the {a}toy that bounces"), "ring"
        ),
        _object(
            "ring",
            "ring hoop",
            "circlet loop",
            ("the {a}round thing with a hole", "the {a}thing worn on a finger"),
            "ball",
        ),
        _object(
            "box",
            "box crate",
            "cube carton",
            ("the {a}thing that parcels come in", "the {a}shape with four equal sides"),
            "house",
        ),
        _object(
            "house",
            "house cottage",
            "cabin hut",
            ("the {a}place where a family lives", "the {a}thing with a roof and a door"),
            "box",
        ),
        _object(
            "pyramid",
            "pyramid triangle",
            "wedge prism",
            ("the {a}shape with three corners", "the {a}thing that pharaohs built"),
            "tree",
        ),
        _object(
            "tree",
            "tree pine",
            "fir spruce",
            ("the {a}tall thing with a trunk", "the {a}thing that grows in a forest"),
            "pyramid",
        ),
        _object(
            "star",
            "star pentagram",
            "starfish nova",
            ("the {a}shape with five points", "the {a}thing that twinkles"),
            "flower",
        ),
        _object(
            "flower",
            "flower daisy",
            "blossom bloom",
            ("the {a}thing with petals", "the {a}thing that bees visit"),
            "star",
        ),
        _object(
            "moon",
            "moon crescent",
            "sickle luna",
            ("the {a}thing that wolves howl at", "the {a}curved shape that waxes and wanes"),
            "boat",
        ),
        _object(
            "boat",
            "boat ship",
            "vessel yacht",
            ("the {a}thing that sails", "the {a}thing that carries people over water"),
            "moon",
        ),
        _object(
            "mushroom",
            "mushroom toadstool",
            "fungus truffle",
            ("the {a}thing with a cap in damp woods", "the {a}thing that gnomes sit under"),
            "umbrella",
        ),
        _object(
            "umbrella",
            "umbrella parasol",
            "brolly canopy",
            ("the {a}thing that keeps the rain off", "the {a}thing you open in a storm"),
            "mushroom",
        ),
        _object(
            "heart",
            "heart valentine",
            "sweetheart amour",
            ("the {a}symbol of love", "the {a}thing that beats in a chest"),
        ),
        _object(
            "fish", "fish trout", "salmon carp", ("the {a}thing that swims", "the {a}thing that an angler catches")
        ),
    )
}

COLOURS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        Concept(
            "red",
            "colour",
            ("red", "scarlet"),
            ("crimson", "ruby"),
            ("in the colour of blood", "painted like a fire engine"),
        ),
        Concept(
            "green",
            "colour",
            ("green", "emerald"),
            ("jade", "verdant"),
            ("in the colour of leaves", "painted like a frog"),
        ),
        Concept(
            "blue",
            "colour",
            ("blue", "azure"),
            ("cobalt", "sapphire"),
            ("in the colour of deep water", "painted like a clear evening"),
        ),
        Concept(
            "yellow",
            "colour",
            ("yellow", "golden"),
            ("amber", "lemon"),
            ("in the colour of the sun", "painted like a ripe banana"),
        ),
        Concept(
            "purple",
            "colour",
            ("purple", "violet"),
            ("mauve", "lilac"),
            ("in the colour of grapes", "painted like a bishop's robe"),
        ),
        Concept(
            "white",
            "colour",
            ("white", "ivory"),
            ("snowy", "chalky"),
            ("in the colour of milk", "painted like fresh paper"),
        ),
    )
}

STYLES: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        Concept(
            "plain",
            "style",
            ("plain", "flat"),
            ("smooth", "uniform"),
            ("with one even surface", "with nothing drawn on it"),
        ),
        Concept(
            "striped",
            "style",
            ("striped", "banded"),
            ("lined", "zebra"),
            ("with bars running across it", "with dark bands from side to side"),
        ),
        Concept(
            "dotted",
            "style",
            ("dotted", "spotted"),
            ("speckled", "freckled"),
            ("with little circles all over it", "covered in dark points"),
        ),
    )
}

BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "sky": ("in the sky", "in the air", "among the clouds"),
    "meadow": ("on a meadow", "on the grass", "in a field"),
    "desert": ("in the desert", "on the sand", "on a dune"),
    "night": ("at night", "in the dark", "after midnight"),
}

CONCEPTS: dict[str, Concept] = {**OBJECTS, **COLOURS, **STYLES}

OBJECT_NAMES = tuple(OBJECTS)
COLOUR_NAMES = tuple(COLOURS)
STYLE_NAMES = tuple(STYLES)
BACKGROUND_NAMES = tuple(BACKGROUNDS)
