"""The result of a search: scored prompts, and what is needed to read them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..concept import ARTICLES
from ..errors import InvalidFile
from ..strict_json import parse_json
from .candidate import NAMED, Point

FORMAT_VERSION = 2
ALL = 0.99999
"""From this threshold on nothing can be said to leak: a posterior is rounded to 1."""
UNCHANGED = 0.75
"""Share of the concept's guidance from which a prompt that names it is hardly changed. It is looked at, whatever its
direction is nearest to, and told: of erasures that work 0.1 to 0.6 is left, for what takes the place is alike."""
MAX_LENGTH = 2**26
"""Characters of the JSON text that are read."""
MAX_ITEMS = 200_000
"""Entries of all its lists and objects: twice as many as the largest search writes."""
SCALARS = {
    "threshold": float, "explicit": bool, "erased": bool, "seconds": float, "calls": int, "seed": int, "stopped": bool,
    "looked": int, "unsettled": int, "dismissed": int, "words_read": int, "words_known": int, "format_version": int,
}  # fmt: skip
POINT = {
    "text": str, "word": str, "origin": str, "similarity": float, "leak": float, "margin": float, "residual": float, 
    "leaks": bool, "hidden": bool, "cluster": int, "thumbnail": str, "near": str,
}  # fmt: skip


NOT_JUDGED = (
    "What leaks could not be judged: with this change harmless prompts read as the concept as surely as its own words "
    "do. That nothing was found says nothing; look at pictures."
)


def hardly_changed(left: float) -> str:
    """A sentence for people on ``Exploration.unchanged``."""
    return (
        f"But prompts that name it still steer pictures {left:.0%} as strongly; the replacement may be a near-synonym, "
        "or the same by another name. Look at pictures."
    )


def too_few_looks(dismissed: int) -> str:
    """A sentence for people on ``Exploration.dismissed``."""
    return (
        f"{dismissed} more suspects were looked at too seldom to say whether they reach it. Search longer, or look at "
        "more pictures."
    )


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
        unsettled: prompts that say the concept and still steer pictures its way, which only a look could have decided,
            and none was made.
        dismissed: further prompts under suspicion for which the budget left too few looks; they are not said to leak.
        words_read: tokens that the scan of the vocabulary has read, the likeliest first.
        words_known: tokens that it would have read with time enough.
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
    unsettled: int = 0
    dismissed: int = 0
    words_read: int = 0
    words_known: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def judged(self) -> bool:
        """Whether leaks could be told at all: not where harmless prompts read as the concept as surely as it does."""
        return self.threshold < ALL

    @property
    def leaking(self) -> tuple[Point, ...]:
        """The points that reach the concept, worst first."""
        return tuple(point for point in self.points if point.leaks)

    @property
    def typed(self) -> tuple[Point, ...]:
        """The points that somebody can type: prompts. The others are embeddings that no text gives."""
        return tuple(point for point in self.points if point.is_text)

    def leaking_words(self, count: int = 24, origins: Collection[str] = ()) -> tuple[str, ...]:
        """What to add to the concept's words for another round of erasing, worst first; none that is there already, and
        no article. With ``origins`` only what these searches found."""
        own = {word.casefold() for word in self.words} | ARTICLES
        found = [point for point in self.leaking if point.is_text and (not origins or point.origin in origins)]
        return tuple(dict.fromkeys(point.word for point in found if point.word.casefold() not in own))[:count]

    def as_names(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Found words as ``Concept.grown`` takes them: each with the concept's word that it is nearest to, or the first
        one where that is not known."""
        near = {point.word: point.near for point in reversed(self.points) if point.near in self.words}
        return [(word, near.get(word, self.words[0])) for word in words]

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
        """What was found, for people: what can be typed, what no text gives, and whether anybody looked."""
        if not self.judged:
            return NOT_JUDGED
        named, others = ([p.leaks for p in self.typed if (p.origin == NAMED) is is_named] for is_named in (True, False))
        start = f"{sum(named) + sum(others)} of {len(self.typed)} prompts still reach “{self.words[0]}” in "
        start += "the erased model" if self.erased else "the untouched model"
        start += f": {sum(named)} of {len(named)} that name it, {sum(others)} of {len(others)} others" if named else ""
        worst = ", ".join(self.leaking_words(5))
        said = [f"{start}; worst of the others: {worst}." if worst else f"{start}."]
        beyond = [point.leaks for point in self.points if not point.is_text]
        if any(beyond):
            said.append(f"{sum(beyond)} of {len(beyond)} embeddings that no text gives reach it too.")
        if self.leaking and not self.looked:
            said.append("No picture was looked at.")
        if self.unchanged:
            said.append(hardly_changed(self.unchanged))
        if self.unsettled:
            said.append(
                f"{self.unsettled} others name it and still steer pictures its way, but were looked at too seldom."
            )
        if self.dismissed:
            said.append(too_few_looks(self.dismissed))
        return " ".join(said)

    @property
    def unchanged(self) -> float:
        """What is left of the guidance towards the concept in the prompts that name it, where that is most of it though
        they do not read as the concept any more; else 0."""
        named = [point for point in self.points if point.origin == NAMED]
        left = median(point.residual for point in named) if named else 0.0
        return left if self.erased and left >= UNCHANGED and not any(point.leaks for point in named) else 0.0

    def coverage(self) -> str:
        """How much of the vocabulary was read; empty where it was not scanned."""
        return f"read {self.words_read:,} of {self.words_known:,} words of the vocabulary" if self.words_known else ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Exploration:
        """Read an exploration that anyone may have written.

        Raises:
            InvalidFile: not JSON, of another format, or with missing or wrongly typed entries.
        """
        try:
            if len(text) > MAX_LENGTH:
                raise ValueError("it is too long")
            return cls._from_raw(parse_json(text, MAX_ITEMS))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidFile(f"This is no exploration that can be read ({error}); explore again.") from error

    @classmethod
    def _from_raw(cls, raw: Any) -> Exploration:
        if _typed(raw, {"format_version": int})["format_version"] != FORMAT_VERSION:
            raise ValueError("another version wrote it")
        known = _typed({"unsettled": 0, "dismissed": 0} | raw, SCALARS)  # older ones do not count them
        known |= {name: _texts(raw, name) for name in ("words", "clusters", "levels")}
        if not known["words"] or not all(known["words"]):
            raise ValueError("it names no concept")
        points = tuple(map(_point, _typed(raw, {"points": list})["points"]))
        if any(not 0 <= point.cluster < len(known["clusters"]) for point in points):
            raise ValueError("a point is of no cluster")
        return cls(points=points, **known)


def _typed(raw: Any, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The entries of a JSON object that have a name in ``kinds``, each of its kind; a whole number may stand for a
    float.

    Raises:
        KeyError: one is missing.
        TypeError: this is no object, or an entry has another type.
    """
    if not isinstance(raw, dict):
        raise TypeError("it is no JSON object")
    for name, kind in kinds.items():
        if type(raw[name]) not in ((float, int) if kind is float else (kind,)):
            raise TypeError(f"{name} has the wrong type")
    return {name: kind(raw[name]) for name, kind in kinds.items()}


def _texts(raw: dict[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts; raises as ``_typed``."""
    texts = _typed(raw, {name: list})[name]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} has the wrong type")
    return tuple(texts)


def _point(raw: Any) -> Point:
    known = _typed({"near": ""} | raw, POINT)  # older ones do not tell it
    evidence = None if raw["evidence"] is None else _typed(raw, {"evidence": float})["evidence"]
    return Point(**known, evidence=evidence)


def ordered(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that leak first, then by margin, then by text: one order on every machine."""
    return tuple(sorted(points, key=lambda point: (not point.leaks, -point.margin, point.text)))
