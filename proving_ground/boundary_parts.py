"""What boundary exploration is measured by: its scores, its search, its attack, the loop, and their speed.

The judge, who knows what is in a picture, has the last word in each but the speed.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from erasure_core import Concept, DeltaSet, Silent, applied
from erasure_core.boundary import Exploration, ExploreSettings, explore
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.harden import harden
from erasure_core.boundary.reading import Reading
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.subject import Budget, Subject

from .bench import Cell, concept_of, erasure_of
from .boundary_attack import compare
from .boundary_scores import aucs, score_prompts
from .captions import noun_phrase
from .evaluation import evaluate
from .judge import load_judge, sees
from .lexicon import CONCEPTS
from .painting import GUIDANCE, load_model, paint

SEEDS = (0, 1, 2, 3)
TOP = 50
CHECKED = 24
"""Prompts of a search, worst first, whose pictures the judge looks at."""
SCORES = ("posterior", "evidence", "reading", "residual")
ROUNDS = 3
SEARCH_SEEDS = {"plain": 1000, "hardened": 2000}
SCALES = (1, 2)
"""Of the latents' sides, in the model's own, on which speed is measured."""
SEARCHED, REUSED, VERDICTS = "searched afresh", "found on the plain one", "called leaks"
"""Of the loop: leak of the prompts that a search of this very erasure finds, of those found on the plain one, and the
share of what was tried that the search itself calls a leak."""


class Bench:
    """Model, judge and the erasures that were made so far."""

    def __init__(self, budget: float) -> None:
        self.model, self.judge, self.budget = load_model(), load_judge(), budget
        self._made: dict[tuple[str, str], DeltaSet] = {}

    def erasures(self, name: str, method: str) -> list[tuple[DeltaSet, float]]:
        if (name, method) not in self._made:
            self._made[name, method] = erasure_of(Cell(method, name, 0), self.model)
        return [(self._made[name, method], 1.0)]

    def seen(self, texts: Sequence[str], name: str, erasures: Sequence[tuple[DeltaSet, float]]) -> list[float]:
        """For each prompt the share of its pictures in which the judge sees the concept."""
        repeated = [text for text in texts for _ in SEEDS]
        with applied(self.model, erasures):
            pictures = paint(self.model, repeated, list(SEEDS) * len(texts), 20)
        hits = [sees(verdict, name) for verdict in self.judge(pictures)]
        return [sum(hits[i : i + len(SEEDS)]) / len(SEEDS) for i in range(0, len(hits), len(SEEDS))]

    def scores(self, name: str, method: str) -> dict[str, Any]:
        lexicon, concept = CONCEPTS[name], concept_of(CONCEPTS[name])
        rows, threshold = score_prompts(self.model, self.judge, lexicon, concept, self.erasures(name, method))
        found: dict[str, Any] = {score: aucs(rows, lexicon, score) for score in SCORES}
        return {**found, "prompts": len(rows), "leaking": sum(row.leaks for row in rows), "threshold": threshold}

    def search(self, name: str, method: str) -> dict[str, Any]:
        """Explore without being given the unnamed words, then let the judge say which of them leak."""
        lexicon, erasures = CONCEPTS[name], self.erasures(name, method)
        found = self._explored(concept_of(lexicon), erasures)
        said = [
            noun_phrase(word) if lexicon.kind == "object" else noun_phrase("thing", word) for word in lexicon.unnamed
        ]
        leaking = [w for w, s in zip(lexicon.unnamed, self.seen(said, name, erasures), strict=True) if s >= 0.5]
        top = [point.word for point in found.points if point.word][:TOP]
        typed = [point for point in found.leaking if point.word][:CHECKED]
        verdicts = self.seen([point.text for point in typed], name, erasures) if typed else []
        return {
            "unnamed_leaking": leaking,
            "recalled": [word for word in leaking if any(_says(word, other) for other in top)],
            "verdicts": len(typed),
            "right": sum(share >= 0.5 for share in verdicts),
            # The concept's own words are given, so they are no find.
            "found_any": any(s >= 0.5 and p.origin != "named" for p, s in zip(typed, verdicts, strict=True)),
            "seconds": found.seconds,
            "points": len(found.points),
            "by_search": found.shares(),
            "top": top[:20],
        }

    def attack(self, name: str, method: str) -> dict[str, Any]:
        concept, erasures = concept_of(CONCEPTS[name]), self.erasures(name, method)
        theirs, ours = compare(self.model, self.judge, concept, erasures, seed=0)
        return {"reference": vars(theirs), "ours": vars(ours)}

    def harden(self, name: str, method: str) -> dict[str, Any]:
        """One erasure without and one with rounds of searching. Each is then searched afresh, with a seed that no round
        used: prompts found on the one say nothing of what a search would find on the other."""
        lexicon, cell, plain = CONCEPTS[name], Cell(method, name, 0), self.erasures(name, method)
        concept, how = cell.told, (cell.variant.method, cell.settings)
        started = time.monotonic()
        hardened, _, rounds = harden(self.model, concept, ROUNDS, *how, search=self.how())  # type: ignore[arg-type]
        seconds = time.monotonic() - started
        result: dict[str, Any] = {"rounds": [vars(one) for one in rounds], "seconds": round(seconds, 1)}
        found_on_plain: list[str] = []
        for which, erasures in (("plain", plain), ("hardened", [(hardened.deltas, 1.0)])):
            shares = evaluate(self.model, self.judge, lexicon, erasures, count=48).shares
            found = self._explored(concept, erasures, SEARCH_SEEDS[which])
            texts = [point.text for point in found.points if point.word][:CHECKED]
            found_on_plain = found_on_plain or texts
            result[which] = {group: figure.share for group, figure in shares.items()} | {
                SEARCHED: _mean(self.seen(texts, name, erasures)),
                REUSED: _mean(self.seen(found_on_plain, name, erasures)),
                VERDICTS: sum(point.leaks for point in found.typed) / max(1, len(found.typed)),
            }
        return result

    def how(self, seed: int = 0) -> ExploreSettings:
        """How this model is searched: with the guidance that it paints best with."""
        return ExploreSettings(seconds=self.budget, guidance=GUIDANCE, seed=seed)

    def _explored(self, concept: Concept, erasures: Sequence[tuple[DeltaSet, float]], seed: int = 0) -> Exploration:
        return explore(self.model, concept, erasures, self.how(seed))  # type: ignore[arg-type]

    def speed(self, name: str, method: str) -> dict[str, Any]:
        """Prompts a minute, and how memory grows from 500 prompts to 1,500, at each scale of the latents."""
        erasures, own = self.erasures(name, method), self.model.latent_shape
        result: dict[str, Any] = {"threads": torch.get_num_threads()}
        try:
            for scale in SCALES:
                self.model.latent_shape = (own[0], scale * own[1], scale * own[2])
                result[f"x{scale}"] = self._speed(concept_of(CONCEPTS[name]), erasures)
        finally:
            self.model.latent_shape = own
        return result

    @torch.no_grad()
    def _speed(self, concept: Concept, erasures: Sequence[tuple[DeltaSet, float]]) -> dict[str, Any]:
        subject = Subject(self.model, erasures, Silent(), Budget(None), guidance=GUIDANCE)  # type: ignore[arg-type]
        with subject.opened():
            scorer = Scorer(subject, concept)
            reading = Reading(subject, scorer.inside, [text for text in scorer.outside if text])
            candidates = [Candidate(f"a thing {i}", "test") for i in range(1500)]
            scorer(candidates[:32])
            scored = _per_minute(lambda: scorer(candidates[:500]), 500)
            memory = _memory()
            read = _per_minute(lambda: reading.read(candidates), len(candidates))
            scorer(candidates)
        return {
            "latent": list(self.model.latent_shape),
            "states": len(scorer.probe),
            "scored_per_minute": round(scored),
            "read_per_minute": round(read),
            "memory_growth_mb": _memory() - memory,
        }


def _per_minute(work: Callable[[], object], count: int) -> float:
    started = time.monotonic()
    work()
    return 60 * count / (time.monotonic() - started)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _says(word: str, found: str) -> bool:
    return word in found.casefold().split()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
