"""Boundary exploration against the judge, who knows what is in a picture: ``python -m proving_ground boundary``.

Four parts, each a result file of its own: the scores, the search, the attack, the loop; and their speed.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from erasure_core import Concept, DeltaSet, Silent, applied, erase
from erasure_core.boundary import Exploration, ExploreSettings, explore
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.harden import harden
from erasure_core.boundary.reading import Reading
from erasure_core.boundary.scores import Scorer
from erasure_core.boundary.subject import Budget, Subject
from erasure_core.safe_files import write_bytes

from .bench import concept_of
from .boundary_attack import compare
from .boundary_scores import aucs, score_prompts
from .captions import noun_phrase
from .evaluation import evaluate
from .judge import load_judge, sees
from .lexicon import CONCEPTS
from .painting import load_model, paint

RESULTS = Path(__file__).parent / "boundary_results"
DOCS = Path(__file__).parent.parent / "docs" / "boundary.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PARTS = ("scores", "search", "attack", "harden", "speed")
OBJECT_CONCEPTS = ("ball", "house", "star", "umbrella")
SEEDS = (0, 1, 2, 3)
TOP = 50
CHECKED = 24
"""Prompts with the verdict "leaks" whose pictures the judge looks at."""
SCORES = ("posterior", "evidence", "reading", "residual")


class Bench:
    """Model, judge and the erasures that were made so far."""

    def __init__(self, budget: float) -> None:
        self.model, self.judge, self.budget = load_model(), load_judge(), budget
        self._made: dict[tuple[str, str], DeltaSet] = {}

    def erasures(self, name: str, method: str) -> list[tuple[DeltaSet, float]]:
        if (name, method) not in self._made:
            self._made[name, method] = erase(self.model, concept_of(CONCEPTS[name]), method)[0].deltas
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
        settings = ExploreSettings(seconds=self.budget)
        found = explore(self.model, concept_of(lexicon), erasures, settings)  # type: ignore[arg-type]
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
            "found_any": any(share >= 0.5 for share in verdicts),
            "seconds": found.seconds,
            "points": len(found.points),
            "by_search": found.shares(),
            "top": top[:20],
        }

    def attack(self, name: str, method: str) -> dict[str, Any]:
        concept, erasures = concept_of(CONCEPTS[name]), self.erasures(name, method)
        theirs, ours = compare(self.model, self.judge, concept, erasures, states=12, seed=0)
        return {"reference": vars(theirs), "ours": vars(ours)}

    def harden(self, name: str, method: str) -> dict[str, Any]:
        """One erasure without and one with three rounds, searched once more with a seed that no round used."""
        lexicon, concept = CONCEPTS[name], concept_of(CONCEPTS[name])
        search = ExploreSettings(seconds=self.budget)
        started = time.monotonic()
        hardened, _, rounds = harden(self.model, concept, 3, method, search=search)  # type: ignore[arg-type]
        seconds = time.monotonic() - started
        result: dict[str, Any] = {"rounds": [vars(one) for one in rounds], "seconds": round(seconds, 1)}
        texts = self._searched(concept, self.erasures(name, method))
        for which, erasures in (("plain", self.erasures(name, method)), ("hardened", [(hardened.deltas, 1.0)])):
            found = evaluate(self.model, self.judge, lexicon, erasures, count=48)
            result[which] = {group: figure.share for group, figure in found.shares.items()}
            result[which]["searched"] = sum(self.seen(texts, name, erasures)) / max(1, len(texts))
        return result

    def _searched(self, concept: Concept, erasures: list[tuple[DeltaSet, float]]) -> list[str]:
        settings = ExploreSettings(seconds=self.budget, seed=1000)
        found: Exploration = explore(self.model, concept, erasures, settings)  # type: ignore[arg-type]
        return [point.text for point in found.leaking if point.word][:CHECKED]

    @torch.no_grad()
    def speed(self, name: str, method: str) -> dict[str, Any]:
        """Prompts a minute, and how memory grows from 500 prompts to 1,500."""
        subject = Subject(self.model, self.erasures(name, method), Silent(), Budget(None))  # type: ignore[arg-type]
        with subject.opened():
            scorer = Scorer(subject, concept_of(CONCEPTS[name]))
            reading = Reading(subject, scorer.inside, [text for text in scorer.outside if text])
            candidates = [Candidate(f"a thing {i}", "test") for i in range(1500)]
            scorer(candidates[:32])
            scored = _per_minute(lambda: scorer(candidates[:500]), 500)
            memory = _memory()
            read = _per_minute(lambda: reading.read(candidates), len(candidates))
            scorer(candidates)
        return {
            "threads": torch.get_num_threads(),
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


def run_boundary(
    parts: Sequence[str], concepts: Sequence[str], methods: Sequence[str], budget: float, missing: bool
) -> None:
    """Measure and write one result file for each part, method and concept, each at once."""
    bench = Bench(budget)
    for part in parts:
        for method in methods:
            for name in concepts:
                path = RESULTS / part / f"{method}_{name}.json"
                if missing and path.exists():
                    continue
                result = {"part": part, "method": method, "concept": name, **getattr(bench, part)(name, method)}
                write_bytes(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
                print(json.dumps(result, ensure_ascii=False), flush=True)


def read_part(part: str) -> list[dict[str, Any]]:
    """All results of one part."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / part).glob("*.json"))]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def figures() -> str:
    """The tables of ``docs/boundary.md``, of the results that there are."""
    makers = {"scores": _scores, "search": _search, "attack": _attack, "harden": _harden, "speed": _speed}
    tables = [makers[part](rows) for part in PARTS if (rows := read_part(part))]
    return "\n\n".join(tables) or "Nothing has been measured yet."


def _scores(rows: list[dict[str, Any]]) -> str:
    lines = ["| score | AUC overall, mean | lowest | AUC against look-alikes, mean | lowest |", "|---|---|---|---|---|"]
    for score in SCORES:
        cells = []
        for kind in ("overall", "look-alikes"):
            values = [row[score][kind] for row in rows if row[score][kind] is not None]
            cells += [_share(_mean(values)), _share(min(values, default=None))]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    leaking = sum(row["leaking"] for row in rows)
    return f"{len(rows)} erasures, {sum(r['prompts'] for r in rows)} prompts, {leaking} leak.\n\n" + "\n".join(lines)


def _search(rows: list[dict[str, Any]]) -> str:
    with_leak = [row for row in rows if row["unnamed_leaking"]]
    words, recalled = (sum(len(row[key]) for row in rows) for key in ("unnamed_leaking", "recalled"))
    verdicts, right = (sum(row[key] for row in rows) for key in ("verdicts", "right"))
    return "\n".join(
        [
            "| figure | value |",
            "|---|---|",
            f"| erasures with unnamed words that leak | {len(with_leak)} of {len(rows)} |",
            f"| of these, a leaking prompt was found | {sum(row['found_any'] for row in with_leak)} |",
            f"| unnamed leaking words in the top {TOP} | {recalled} of {words} |",
            f"| verdicts “leaks” that the judge confirms | {right} of {verdicts} |",
            f"| seconds, mean | {_share(_mean(row['seconds'] for row in rows), '.0f')} |",
        ]
    )


def _attack(rows: list[dict[str, Any]]) -> str:
    lines = ["| attack | success, mean | network calls, mean |", "|---|---|---|"]
    for which, label in (("reference", "UnlearnDiffAtk, plain loop"), ("ours", "prefix search")):
        success = _mean(row[which]["success"] for row in rows)
        lines.append(
            f"| {label} | {_share(success, '.0%')} | {_share(_mean(r[which]['calls'] for r in rows), '.0f')} |"
        )
    return "\n".join(lines)


def _harden(rows: list[dict[str, Any]]) -> str:
    groups = [group for group in rows[0]["plain"]]
    lines = ["| erasure | " + " | ".join(groups) + " |", "|---" * (len(groups) + 1) + "|"]
    for which in ("plain", "hardened"):
        cells = [_share(_mean(row[which].get(group) for row in rows), ".1%") for group in groups]
        lines.append(f"| {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _speed(rows: list[dict[str, Any]]) -> str:
    row = rows[0]
    return (
        f"Latents {'x'.join(map(str, row['latent'][1:]))}, {row['states']} states, {row['threads']} thread(s): "
        f"{row['scored_per_minute']} prompts scored a minute, {row['read_per_minute']} read by text alone; "
        f"{row['memory_growth_mb']} MB more for 1,500 prompts than for 500."
    )


def write_figures() -> None:
    """Put the tables into the docs, between the two markers."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    write_bytes(DOCS, f"{before}{BEGIN}\n{figures()}\n{END}{after}".encode())
