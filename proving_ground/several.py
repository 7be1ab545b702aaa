"""Several concepts at once: erased in one run, and one file for each, all applied together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from erasure_core import Concept, DeltaSet, applied, erase
from erasure_core.concept import without_contradictions
from erasure_core.hosts.diffusers import DiffusersModel

from .bench import Cell, erasure_of
from .evaluation import LEAKS, questions
from .figures import Figure, share_of
from .judge import Judge, load_judge, sees
from .lexicon import CONCEPTS
from .painting import load_model, paint

FIVE = ("ball", "house", "star", "fish", "red")
KEPT = "kept"
UNTOUCHED, ONE_RUN, STACKED = "untouched", "in one run", "files stacked"
Erasures = Sequence[tuple[DeltaSet, float]]


@dataclass(frozen=True)
class Row:
    """One way to erase them all.

    Args:
        way: its name.
        figures: leak of named words, other words and descriptions over all concepts, and what is kept.
        seconds: of erasing; 0 where the files were there.
    """

    way: str
    figures: list[Figure]
    seconds: float = 0.0

    def line(self) -> str:
        shares = "  ".join(f"{f.name} {f.share:6.1%} of {f.count}" for f in self.figures)
        return f"{self.way:<14} {shares}  {f'{self.seconds:.0f} s' if self.seconds else ''}".rstrip()


def together(method: str, names: Sequence[str]) -> Concept:
    """The concepts as one that is erased in one run, each told as a row of the benchmark is told it. A prompt to keep
    that says one of them is left out."""
    return without_contradictions(Concept.joined([Cell(method, name, 0).told for name in names]))


def judged(model: DiffusersModel, judge: Judge, names: Sequence[str], erasures: Erasures, count: int) -> list[Figure]:
    """Leak over all concepts, and how often other concepts of their kinds are seen where they are asked for."""
    figures = []
    with applied(model, erasures):
        for group in (*LEAKS, KEPT):
            asked = [question for name in names for question in questions(CONCEPTS[name], group, count)]
            if group == KEPT:
                asked = [one for one in asked if one.shows not in names]
            verdicts = judge(paint(model, [one.prompt for one in asked], range(len(asked))))
            figures.append(share_of(group, (sees(v, one.shows) for v, one in zip(verdicts, asked, strict=True))))
    return figures


def report_several(method: str, names: Sequence[str] = FIVE, count: int = 24) -> None:
    """Print what several concepts leak and what is kept: untouched, erased in one run, and as a stack of files.

    Args:
        method: a row of the benchmark.
        names: of concepts.
        count: pictures of each concept in each group.
    """
    model, judge = load_model(), load_judge()
    print(Row(UNTOUCHED, judged(model, judge, names, (), count)).line(), flush=True)
    started, any_cell = monotonic(), Cell(method, names[0], 0)
    at_once = erase(model, together(method, names), any_cell.variant.method, any_cell.settings)[0].deltas
    seconds = monotonic() - started
    print(Row(ONE_RUN, judged(model, judge, names, [(at_once, 1.0)], count), seconds).line(), flush=True)
    stack = [(erasure_of(Cell(method, name, 0), model), 1.0) for name in names]
    print(Row(STACKED, judged(model, judge, names, stack, count)).line(), flush=True)
