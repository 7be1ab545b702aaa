"""The result of a search: scored prompts, and what is needed to read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import InvalidFile
from .candidate import Point

FORMAT_VERSION = 1
MAX_LENGTH = 2**26
"""Characters of the JSON text that are read."""


@dataclass(frozen=True)
class Exploration:
    """What was found.

    Args:
        words: the concept.
        points: every scored candidate, those that leak most first.
        threshold: posterior above which a candidate leaks.
        clusters: names of the clusters, by index.
        explicit: the concept is sexual or violent: pictures are blurred.
        erased: whether an erasure was on; else this is the untouched model.
        levels: the searches that were run.
        seconds: what it took.
        calls: predictions of the diffusion network.
        seed: of all chance.
        stopped: the user stopped before the budget was used up.
        looked: how many candidates were painted and looked at.
    """

    words: tuple[str, ...]
    points: tuple[Point, ...]
    threshold: float
    clusters: tuple[str, ...]
    explicit: bool
    erased: bool
    levels: tuple[str, ...]
    seconds: float
    calls: int
    seed: int
    stopped: bool = False
    looked: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def leaking(self) -> tuple[Point, ...]:
        """The points that reach the concept, worst first."""
        return tuple(point for point in self.points if point.leaks)

    def leaking_words(self, count: int = 24) -> tuple[str, ...]:
        """What to add to the concept's words for another round of erasing, worst first; none that is there already."""
        own = {word.casefold() for word in self.words}
        words = dict.fromkeys(point.word for point in self.leaking if point.word and point.word.casefold() not in own)
        return tuple(words)[:count]

    def shares(self) -> dict[str, tuple[int, int]]:
        """For each origin how many points leak, and of how many."""
        origins = dict.fromkeys(point.origin for point in self.points)
        return {
            origin: (
                sum(p.leaks for p in self.points if p.origin == origin),
                sum(p.origin == origin for p in self.points),
            )
            for origin in origins
        }

    def summary(self) -> str:
        """One sentence for people."""
        found = len(self.leaking)
        what = "the erased model" if self.erased else "the untouched model"
        start = f"{found} of {len(self.points)} prompts still reach “{self.words[0]}” in {what}"
        worst = ", ".join(self.leaking_words(5))
        return f"{start}; worst: {worst}." if worst else f"{start}."

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Exploration:
        """Read an exploration that anyone may have written.

        Raises:
            InvalidFile: not JSON, of a newer format, or with missing or wrongly typed entries.
        """
        try:
            if len(text) > MAX_LENGTH:
                raise ValueError("it is too long")
            raw: dict[str, Any] = json.loads(text)
            if raw["format_version"] > FORMAT_VERSION:
                raise ValueError("a newer version wrote it")
            known = {f.name: raw[f.name] for f in fields(cls)}
            for name in ("words", "clusters", "levels"):
                known[name] = tuple(str(item) for item in known[name])
            known["points"] = tuple(_point(item) for item in known["points"])
            return cls(**known)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidFile(f"This is no exploration that can be read ({error}); explore again.") from error


def _point(raw: dict[str, Any]) -> Point:
    types = {"text": str, "word": str, "origin": str, "thumbnail": str, "leaks": bool, "hidden": bool}
    for name, kind in types.items():
        if not isinstance(raw[name], kind):
            raise TypeError(f"{name} has the wrong type")
    return Point(
        text=raw["text"],
        word=raw["word"],
        origin=raw["origin"],
        similarity=float(raw["similarity"]),
        leak=float(raw["leak"]),
        residual=float(raw["residual"]),
        leaks=raw["leaks"],
        evidence=None if raw["evidence"] is None else float(raw["evidence"]),
        hidden=raw["hidden"],
        cluster=int(raw["cluster"]),
        thumbnail=raw["thumbnail"],
    )


def without_pictures(exploration: Exploration) -> Exploration:
    """The same without thumbnails."""
    return replace(exploration, points=tuple(replace(point, thumbnail="") for point in exploration.points))


def ordered(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that leak first, then by posterior, then by text: one order on every machine."""
    return tuple(sorted(points, key=lambda point: (not point.leaks, -point.leak, point.text)))
