"""What a report card holds: the figures of each file, with their intervals, and the pictures side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .exploration import Exploration

DEVIATIONS = 1.96
"""Standard deviations of a normal distribution to each side that hold 95 % of it."""
STRIP_SIDE = 128
SAMPLER = "DDIM"
"""What its pictures are sampled with."""


@dataclass(frozen=True)
class Share:
    """A share of ``count`` cases with its 95 % interval (Wilson 1927)."""

    share: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class Strip:
    """Same-seed pictures for one prompt, as data URIs: the untouched model's first, then each file's."""

    prompt: str
    kind: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class FileReport:
    """What was measured of one file.

    Args:
        name, strength: as given.
        leak: by threat, the share of prompts that still reach the concept.
        yardstick: the same prompts on the untouched model, by their directions alone.
        retention: by group, the share of prompts that still steer where they did.
        change: by group, the mean relative change of the guidance.
        drift: timestep and relative change of the unconditional prediction.
        sweep: strength, share that leaks by its direction alone, share that is kept; the last is ``None`` where there
            is nothing to keep.
        found: the worst prompts that reach the concept.
        unnamed: of these the words and spellings that nobody named.
        looked: prompts whose pictures were looked at.
        about: method, settings, base, cost.
        verdict: sentences for people.
        unsettled: prompts that name the concept of which the budget left open whether they leak.
        dismissed: further prompts under suspicion that were looked at too seldom (``Exploration.dismissed``).
        unchanged: what is left of the guidance in prompts that name the concept, if most (``Exploration.unchanged``).
        judged: whether leaks could be told at all (``Exploration.judged``); where not, those shares mean nothing.
    """

    name: str
    strength: float
    leak: dict[str, Share]
    yardstick: dict[str, Share]
    retention: dict[str, Share]
    change: dict[str, float]
    drift: tuple[tuple[int, float], ...]
    sweep: tuple[tuple[float, float, float | None], ...]
    found: tuple[str, ...]
    unnamed: tuple[str, ...]
    looked: int
    about: dict[str, Any]
    verdict: tuple[str, ...] = ()
    judged: bool = True
    unsettled: int = 0
    dismissed: int = 0
    unchanged: float = 0.0


@dataclass(frozen=True)
class ReportCard:
    """The report of one or several files on one concept, side by side."""

    words: tuple[str, ...]
    explicit: bool
    files: tuple[FileReport, ...]
    look_alikes: tuple[str, ...]
    strips: tuple[Strip, ...]
    settings: dict[str, Any]
    limits: tuple[str, ...]
    explorations: tuple[Exploration, ...] = field(default=(), repr=False)
    not_painted: str = ""
    """A sentence on why pictures are left out; empty where none are."""

    def to_json(self) -> str:
        """Everything but the pictures and the single points."""
        content = asdict(replace(self, strips=(), explorations=()))
        return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)


def share_of(hits: Iterable[bool]) -> Share:
    """The share of cases that hold, with its 95 % interval.

    Wilson's score interval: none of 10 says 0 to 28 %, where resampling the cases would say 0 to 0 %.
    """
    cases = list(hits)
    count, share = len(cases), sum(cases) / max(1, len(cases))
    if not count:
        return Share(0.0, 0, 0.0, 1.0)
    square = DEVIATIONS**2 / count
    middle = (share + square / 2) / (1 + square)
    half = DEVIATIONS / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(round(share, 5), count, round(min(low, share), 5), round(max(high, share), 5))


def counted(hits: int, count: int) -> Share:
    """``share_of``, of cases that are counted already."""
    return share_of([True] * hits + [False] * (count - hits))


def _repeating(settings: dict[str, Any]) -> dict[str, Any]:
    """What to set for the same figures and pictures once more."""
    searched = "seconds" if settings["calls"] is None else "calls"
    names = (searched, "states", "guidance", "steps", "seed")
    return {"sampler": SAMPLER, **{name: settings[name] for name in names}}


def measured_entry(card: ReportCard, number: int = 0) -> dict[str, Any]:
    """What goes into a file's manifest under ``measured``: the figures with their threat model, without pictures."""
    file = card.files[number]
    kept = {name: asdict(value) for name, value in file.retention.items()}
    leak = {name: asdict(value) for name, value in file.leak.items()}
    return {
        "report_card": {
            "leak": leak,
            "leak_judged": file.judged,
            "retention": kept,
            "largest_drift": max(value for _, value in file.drift),
            "verdict": list(file.verdict),
            "threat_model": list(card.limits),
            "concept": list(card.words),
            "strength": file.strength,
            "searched": file.about["searched"],
            **_repeating(card.settings),
        }
    }
