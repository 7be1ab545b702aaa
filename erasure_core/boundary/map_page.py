"""The interactive map: one HTML file, plain JavaScript, and a content policy that forbids it the network."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from .candidate import ORIGINS
from .drawing import AT_NIGHT, PALETTE
from .exploration import Exploration

TEMPLATE = Path(__file__).with_name("map_page.html")


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def palette() -> str:
    """CSS with the colours of origins, ``--c0`` and so on, in both themes."""
    day = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(PALETTE))
    night = " ".join(f"--c{i}: {AT_NIGHT.get(colour, colour)};" for i, colour in enumerate(PALETTE))
    return f":root {{ {day} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {night} }} }}"


def map_page(exploration: Exploration) -> str:
    """HTML of the map. Texts come from the vocabulary and from strangers' files, so none is ever read as HTML."""
    points = [
        [
            p.text, p.word, p.origin, p.similarity, p.leak, p.residual, int(p.leaks), int(p.hidden), p.cluster,
            p.evidence, p.thumbnail,
        ]
        for p in exploration.points
    ]  # fmt: skip
    data = {
        "words": exploration.words,
        "threshold": exploration.threshold,
        "clusters": exploration.clusters,
        "explicit": exploration.explicit,
        "erased": exploration.erased,
        "summary": exploration.summary(),
        "searched": f"{exploration.seconds:.0f} s with the preparation, seed {exploration.seed}: "
        + ", ".join(exploration.levels)
        + (f"; {exploration.coverage()}" if exploration.coverage() else "")
        + (" (stopped early)" if exploration.stopped else ""),
        "colours": len(PALETTE),
        "origins": ORIGINS,
        "points": points,
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace("{{palette}}", palette()).replace("{{title}}", escape(exploration.words[0]))
    return page.replace("{{data}}", embedded(data))
