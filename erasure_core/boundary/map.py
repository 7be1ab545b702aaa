"""The boundary map: how near a prompt is to the concept in text, against how much it still reaches it.

Upper right is what was to be expected, the concept's own words that leak; upper left is the hidden part of the domain,
prompts that nobody would take for the concept and that reach it all the same. Hollow points are above the line, but
pictures did not show the concept: their own, or those of most others where the budget left no look.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..safe_files import write_files
from .candidate import HIDDEN_BELOW, ORIGINS, Point
from .drawing import DIM, FAINT, INK, PALETTE, PAPER, SHADE, WARN, Sheet
from .exploration import Exploration
from .map_page import map_page

WIDTH, HEIGHT = 900, 620
LEFT, TOP, RIGHT, BOTTOM = 76, 86, 660, 560
LOWEST, HIGHEST = -7.0, 7.0
"""Log odds at the ends of the axis: 0.1 % to 99.9 %."""
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
NEAREST = (-0.5, 1.05)
LABELLED = 10
LEGEND = 32
"""Characters of an origin's name at most: a file may hold any."""
SUMMARY_WIDTH = 130
"""Characters of a line of the summary."""
LABEL, LETTER, LABEL_HEIGHT = 26, 6.0, 14.0
"""Characters of a label at most, and about how many pixels a letter and a line take."""


def log_odds(share: float) -> float:
    """Log odds of a probability, cut to the axis."""
    share = min(max(share, 1e-6), 1 - 1e-6)
    return min(HIGHEST, max(LOWEST, math.log(share / (1 - share))))


def place_of(point: Point) -> tuple[float, float]:
    """Where a point lies on the sheet."""
    low, high = NEAREST
    x = LEFT + (min(high, max(low, point.similarity)) - low) / (high - low) * (RIGHT - LEFT)
    return x, _height(point.leak)


def _height(leak: float) -> float:
    return BOTTOM - (log_odds(leak) - LOWEST) / (HIGHEST - LOWEST) * (BOTTOM - TOP)


def origins(points: Sequence[Point]) -> dict[str, str]:
    """Colour of each origin, in the order of their names."""
    names = sorted({point.origin for point in points})
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def map_sheet(exploration: Exploration) -> Sheet:
    """The static map."""
    sheet = Sheet(WIDTH, HEIGHT)
    _frame(sheet, exploration)
    colours = origins(exploration.points)
    for point in sorted(exploration.points, key=lambda p: p.leaks):
        if point.leak > exploration.threshold and not point.leaks:
            sheet.ring(place_of(point), 3.5, colours[point.origin])
        else:
            opacity = 0.9 if point.leaks else 0.35
            sheet.circle(place_of(point), 4.5 if point.leaks else 3, colours[point.origin], opacity)
    _labels(sheet, exploration)
    _legend(sheet, exploration, colours)
    return sheet


def _legend(sheet: Sheet, exploration: Exploration, colours: dict[str, str]) -> None:
    """Beside the plot: on the line itself points lie closest together, and nobody could read a text there."""
    shares = exploration.shares()
    listed = [name for name in ORIGINS if name in colours]
    y = TOP + 14.0
    for name in dict.fromkeys([*listed, *colours]):
        leaking, every = shares[name]
        sheet.circle((RIGHT + 24, y - 4), 5, colours[name])
        sheet.text((RIGHT + 36, y), ORIGINS.get(name, name).split(" (")[0][:LEGEND], 11.5)
        sheet.text((RIGHT + 36, y + 15), f"{leaking} of {every} leak", 11, DIM)
        y += 37
    sheet.line([(RIGHT + 17, y - 4), (RIGHT + 31, y - 4)], WARN, 1.4)
    sheet.text((RIGHT + 36, y), f"suspected above {exploration.threshold:.1%}", 11.5, WARN)
    sheet.text((RIGHT + 36, y + 15), "hollow: pictures do not confirm it", 11, WARN)


def _frame(sheet: Sheet, exploration: Exploration) -> None:
    low, high = NEAREST
    line = _height(exploration.threshold)
    edge = LEFT + (HIDDEN_BELOW - low) / (high - low) * (RIGHT - LEFT)
    sheet.rect((0, 0), (WIDTH, HEIGHT), PAPER)
    sheet.rect((LEFT, TOP), (edge, line), SHADE)
    sheet.text((LEFT + 8, TOP + 18), "hidden: far in text, and leaking where not hollow", 11.5, WARN)
    which = "with the erasure on" if exploration.erased else "untouched model"
    sheet.text((LEFT, 26), f"Boundary of “{exploration.words[0]}”, {which}", 17)
    lines = textwrap.wrap(exploration.summary(), SUMMARY_WIDTH, max_lines=2, placeholder=" …")
    for number, text in enumerate(lines):
        sheet.text((LEFT, 44 + 14 * number), text, 11.5, DIM)
    for share in TICKS:
        y = _height(share)
        sheet.line([(LEFT, y), (RIGHT, y)], FAINT, 0.6)
        sheet.text((LEFT - 8, y + 4), f"{100 * share:g} %", 11, DIM, "end")
    for tick in (-0.5, 0.0, 0.5, 1.0):
        x = LEFT + (tick - low) / (high - low) * (RIGHT - LEFT)
        sheet.line([(x, BOTTOM), (x, BOTTOM + 5)], INK)
        sheet.text((x, BOTTOM + 20), f"{tick:g}", 11, DIM, "middle")
    sheet.line([(LEFT, line), (RIGHT, line)], WARN, 1.4)
    sheet.line([(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], INK)
    middle = (LEFT + RIGHT) / 2
    sheet.text(
        (middle, BOTTOM + 42), "similarity to the concept in the original model's text reading", 12.5, INK, "middle"
    )
    sheet.text((8, TOP - 12), "chance that the prompt steers to the concept", 12)


def _labels(sheet: Sheet, exploration: Exploration) -> None:
    """Names of the worst points, hidden ones first, where there is room."""
    taken: list[tuple[float, float, float]] = []
    hidden_first = sorted(exploration.leaking, key=lambda p: (not p.hidden, -p.margin))
    for point in hidden_first:
        if len(taken) == LABELLED:
            return
        x, y = place_of(point)
        text = textwrap.shorten(point.word or point.text, LABEL, placeholder="…")
        width = LETTER * len(text)
        left = x - 7 - width if x + 7 + width > RIGHT else x + 7
        free = all(left > right or left + width < start or abs(y - at) > LABEL_HEIGHT for start, right, at in taken)
        if text and left > LEFT and free:
            is_left = left < x
            sheet.text((x - 7 if is_left else x + 7, y + 4), text, 11, INK, "end" if is_left else "start")
            taken.append((left, left + width, y))


def map_svg(exploration: Exploration) -> str:
    """The static map as SVG."""
    return map_sheet(exploration).svg(f"Boundary of {exploration.words[0]}")


def map_picture(exploration: Exploration) -> Image.Image:
    """The static map as a picture."""
    return map_sheet(exploration).picture()


def write_map(exploration: Exploration, folder: Path) -> list[Path]:
    """Write ``map.html``, ``map.svg``, ``map.png``, ``exploration.json`` and ``leaking.txt``.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; none of them is there then.
    """
    buffer = io.BytesIO()
    map_picture(exploration).save(buffer, format="PNG")
    files = {
        "map.html": map_page(exploration).encode(),
        "map.svg": map_svg(exploration).encode(),
        "map.png": buffer.getvalue(),
        "exploration.json": exploration.to_json().encode(),
        "leaking.txt": "".join(" ".join(word.split()) + "\n" for word in exploration.leaking_words(10_000)).encode(),
    }
    write_files(folder, files)
    return [folder / name for name in files]
