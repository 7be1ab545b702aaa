"""What the tests of exploration share: a concept, and explorations that no model made, with hostile texts."""

from __future__ import annotations

import math
import random

from erasure_core import Concept
from erasure_core.boundary.candidate import Point
from erasure_core.boundary.exploration import Exploration, ordered

CONCEPT = Concept(("ball", "sphere"), None, ("a red box", "a cat"))
QUICK = {"seconds": None, "calls": 4000, "states": 2, "look": 4}
"""Settings of a short search that depends on the seed alone."""
TRIES = ("the round thing that rolls",)
"""What a user has tried in it."""
HOSTILE = ("</script><script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>", 'a & b \u2028 "c"')
ORIGINS = ("vocabulary", "named", "misspelling", "genetic", "prefix", "self-check", "inversion")


def made_up(count: int = 300, seed: int = 0, explicit: bool = False) -> Exploration:
    """An exploration with ``count`` points, three of them with hostile texts, one in nine leaking."""
    rng = random.Random(seed)
    points = []
    for i in range(count):
        similarity = round(max(-0.4, min(1.0, rng.gauss(0.15, 0.25))), 4)
        reach = 5 * (similarity - 0.75) + rng.gauss(-2, 2.2)
        leak = round(1 / (1 + math.exp(-reach)), 5)
        origin = ORIGINS[min(int(rng.expovariate(0.9)), len(ORIGINS) - 1)]
        text = HOSTILE[i] if i < len(HOSTILE) else f"a word{i}"
        leaks = leak > 0.6 or i < len(HOSTILE)
        typed = origin != "inversion"
        points.append(
            Point(
                text, (f"word{i}" if i >= len(HOSTILE) else text) if typed else "", origin, similarity, leak,
                round(reach, 4), round(leak * 0.8, 3), leaks, 0.5 if leaks else None, leaks and similarity < 0.5, i % 3,
            )
        )  # fmt: skip
    return Exploration(
        words=("ball", "sphere"), points=ordered(points), threshold=0.6, clusters=("a ball", "<b>a ring</b>", "others"),
        explicit=explicit, erased=True, levels=("lexical", "vocabulary"), seconds=60.0, calls=12_345, seed=seed,
        looked=9,
    )  # fmt: skip
