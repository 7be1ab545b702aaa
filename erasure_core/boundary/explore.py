"""Explore a concept's boundary: which prompts still reach it, among those that nobody thought of?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import Tensor

from .. import guard
from ..concept import Concept, check_words, without_contradictions
from ..delta import DeltaSet
from ..errors import (
    Cancelled,
    ErasureError,
    InvalidSettings,
    raising_out_of_memory,
)
from ..methods.registry import check_settings, option
from ..model import PromptModel, check_readable
from ..progress import Progress, Report, Silent
from .candidate import HIDDEN_BELOW, NAMED, Candidate, Point
from .clusters import clusters
from .exploration import UNCHANGED, Exploration, ordered
from .field import Field
from .looks import Detector, Looks
from .reading import Reading
from .scores import Scorer
from .searches import LADDER, LEVELS, Level
from .subject import GUIDANCE, Budget, Subject
from .thumbnails import thumbnail

LOOKING = 0.4
"""Share of the budget that is kept for pictures of the worst candidates: what is not looked at is no leak."""
HEARD = 0.25
"""Share of the concept's guidance from which a prompt that says it of a thing is looked at, whatever its direction is
nearest to: the bundled model still paints red houses with 0.42 of it. Without a look it does not count."""
SKETCH = 64
"""Numbers kept of each prompt, for clusters."""
MOST_POINTS = 5000
Watcher = Callable[[Sequence[Point]], None]
"""Told all points so far, in the order in which they were found, each time that some were added."""


@dataclass(frozen=True)
class ExploreSettings:
    """How to explore. Without ``seconds``, with ``calls`` alone, the result depends on the seed only."""

    seconds: float | None = option(60.0, "seconds of searching", low=1.0, high=86_400.0)
    calls: int | None = option(None, "most predictions of the diffusion network", low=1, high=10**9)
    levels: str = option("+".join(LEVELS), "searches to run", choices=LEVELS, combine=True)
    states: int = option(8, "noisy latents at which prompts are compared", low=2, high=64)
    look: int = option(48, "worst candidates that are painted and looked at; 0 for none", low=0, high=1000)
    guidance: float = option(GUIDANCE, "guidance scale of the model's own pictures", low=1.0, high=30.0)
    pictures: bool = option(False, "keep small pictures of them; blurred where the concept is explicit")
    sensitive: bool = option(False, "treat the concept as explicit, whatever its words say")
    seed: int = option(0, "seed of all chance", low=0, high=2**53)
    max_batch: int = option(64, "most latents in one call", low=1, high=1024, neutral=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.seconds is None and self.calls is None:
            raise InvalidSettings("A search needs an end; give seconds or calls.")


@raising_out_of_memory()
def explore(
    model: PromptModel,
    concept: Concept,
    erasures: Sequence[tuple[DeltaSet, float]] = (),
    settings: ExploreSettings | None = None,
    progress: Progress | None = None,
    tries: Sequence[str] = (),
    detector: Detector | None = None,
    notify: Watcher = lambda points: None,
    scorer: Scorer | None = None,
) -> Exploration:
    """Search for prompts that reach a concept.

    Args:
        model: the loaded model; never changed.
        concept: what to find; its kept prompts are what candidates could mean instead.
        erasures: what is applied, with strengths; none explores where the concept lives in the untouched model.
        settings: how to search.
        progress: reports and cancellation; a cancelled search returns what it has found so far.
        tries: prompts of the user's own to try: synonyms, descriptions, other languages.
        detector: looks at the pictures of the worst candidates in the model's place; needs a model that can ``decode``.
        notify: told what was found so far, while it is being found.
        scorer: one for this model and concept, whatever erasures it was made with: saves most of the preparation. Its
            states count, not those of the settings.

    Raises:
        InvalidConcept: the guard refuses the search, before any of it is made.
        InvalidSettings: the budget was used up before anything was found.
        Cancelled: the user stopped before anything was found.
        PromptTooLong: a prompt of the user's has more tokens than the text encoder reads.
        OutOfMemory: the device has too little memory for the preparation.
        ErasureError: nothing was found, since every search failed; of the last one.
    """
    concept = searchable(model, concept, tries)
    settings, progress = settings or ExploreSettings(), progress or Silent()
    budget = Budget(settings.seconds, settings.calls)
    subject = Subject(model, erasures, progress, budget, settings.max_batch, settings.guidance)
    with subject.opened():
        explorer = _Explorer(subject, concept, settings, tries, detector, notify, scorer)
        found = explorer.run()
    # To decode, a host may move networks about: by now nothing of the model is lent any more.
    return explorer.illustrated(found)


def searchable(model: PromptModel, concept: Concept, tries: Sequence[str]) -> Concept:
    """The concept as it is searched for, or a refusal before anything is.

    Prompts to keep that say the concept are left out: they would be what it could mean instead.

    Raises:
        InvalidConcept: the guard refuses the search, or the model cannot read a word.
        PromptTooLong: a word or a prompt to try has more tokens than the text encoder reads.
    """
    guard.check(concept, tries)
    check_words(concept)
    check_readable(model, concept.words)
    with torch.no_grad():
        model.encode([*tries, *concept.words])
    return without_contradictions(concept)


class _Explorer:
    """One running exploration."""

    def __init__(
        self,
        subject: Subject,
        concept: Concept,
        settings: ExploreSettings,
        tries: Sequence[str],
        detector: Detector | None,
        notify: Watcher,
        scorer: Scorer | None,
    ) -> None:
        self.subject, self.concept, self.settings, self.detector = subject, concept, settings, detector
        self.started, self.explicit = monotonic(), settings.sensitive or guard.is_explicit(concept)
        self.notify = notify
        subject.progress.update(Report("preparing", 0, 100))  # nothing of the budget, which begins after it
        scorer = scorer.on(subject) if scorer else Scorer(subject, concept, settings.states, settings.seed)
        reading = Reading(subject, scorer.inside, [prompt for prompt in scorer.outside if prompt])
        self.field = Field(subject, concept, reading, scorer, tries, settings.seed)
        subject.budget.begin()
        self.points: list[Point] = []
        self.candidates: dict[str, Candidate] = {}
        self.sketches: list[Tensor] = []
        self.levels: list[str] = []
        self.stopped = False
        self.looks = Looks(subject, scorer, self.points, self.candidates, settings.seed, self._tell)

    def run(self) -> Exploration:
        failed: ErasureError | None = None
        try:
            chosen = self.settings.levels.split("+")
            for level in LADDER:
                # Even the smallest budget tries the concept's own words.
                if level.name in chosen and not (self.points and self.subject.stopped()):
                    failed = self._attempt(level, chosen) or failed
            self._spared("looks", lambda: self.looks.look(self.settings.look, self.detector))
        except Cancelled:
            self.stopped = True
        self.looks.settle()
        self.stopped = self.stopped or self.subject.progress.cancelled()
        if not self.points and self.stopped:
            raise Cancelled("Stopped before anything was found.")
        if not self.points:
            spent = "The budget was used up before anything was found; give more seconds or calls."
            raise failed or InvalidSettings(spent)
        return self._result()

    def _tell(self, stage: str) -> None:
        spent = self.subject.budget.spent(self.subject.calls)
        self.subject.progress.update(Report(stage, min(100, round(100 * spent)), 100))

    def _attempt(self, level: Level, chosen: Sequence[str]) -> ErasureError | None:
        """Run one search, which does not count among those that were run where it fails."""
        failed = self._spared(level.name, lambda: self._climb(level, chosen))
        if failed:
            self.levels.remove(level.name)
        return failed

    def _spared(self, what: str, work: Callable[[], None]) -> ErasureError | None:
        """Do a part of the work; where something does not fit this model, it is left out and the rest goes on.

        Raises:
            Cancelled: the user stopped.
        """
        try:
            with raising_out_of_memory():
                work()
        except Cancelled:
            raise
        except ErasureError as error:
            self._tell(f"{what} left out: {error}")
            return error
        return None

    def _climb(self, level: Level, chosen: Sequence[str]) -> None:
        """Run one search for its share of what is left."""
        behind = sum(other.share for other in LADDER[LADDER.index(level) :] if other.name in chosen) + LOOKING
        spent = self.subject.budget.spent(self.subject.calls)
        self.field.until = spent + (1 - spent) * level.share / behind
        self.levels.append(level.name)
        self._tell(level.name)
        batch = None
        for batch in level.search(self.field):
            self._take([candidate for candidate in batch if self._is_new(candidate)])
            self._tell(level.name)
            if self.points and self.subject.stopped():
                return
        if batch is None:  # else it would be told among the searches that were run
            self.levels.remove(level.name)
            self._tell(f"{level.name} left out: what is left of the budget, or of the prompt, does not suffice")

    def _take(self, batch: Sequence[Candidate]) -> None:
        """Score a batch, in pieces so small that the budget is kept; the first one whole, since even the smallest
        budget tries the concept's own words."""
        scorer, subject = self.field.scorer, self.subject
        if not self.points:
            return self._score(batch)
        shape = tuple(scorer.probe.latents.shape[1:])
        while batch and not subject.stopped():
            many = max(1, subject.affordable(min(scorer.at_once, len(batch)), len(scorer.probe), shape=shape))
            self._score(batch[:many])
            batch = batch[many:]

    def _is_new(self, candidate: Candidate) -> bool:
        """Whether a candidate is allowed, not too long, and not scored yet."""
        key = candidate.text.casefold()
        if key in self.candidates or len(self.points) >= MOST_POINTS:
            return False
        if not self.subject.fits(self.subject.rows([candidate])[0]) or not guard.allows(self.concept, candidate.text):
            return False
        self.candidates[key] = candidate
        return True

    @torch.no_grad()
    def _score(self, batch: Sequence[Candidate]) -> None:
        if not batch:
            return
        reading, scorer = self.field.reading, self.field.scorer
        scores = scorer(batch)
        with self.subject.original():
            vectors = reading.read(batch, short=False)
        similar, near = reading.similarity(vectors).tolist(), map(scorer.word_of, reading.nearest(vectors))
        self.sketches += list(_sketch(vectors))
        for candidate, score, similarity, word in zip(batch, scores, similar, near, strict=True):
            heard = candidate.origin == NAMED and score.residual >= (HEARD if candidate.against else UNCHANGED)
            leaks = score.leak > scorer.threshold or heard
            self.points.append(
                Point(
                    text=candidate.text,
                    word=candidate.target,
                    origin=candidate.origin,
                    similarity=round(min(1.0, max(-1.0, similarity)), 5),
                    leak=round(score.leak, 5),
                    margin=round(score.margin, 9),
                    residual=round(score.residual, 5),
                    leaks=leaks,
                    hidden=leaks and candidate.is_text and not candidate.against and similarity < HIDDEN_BELOW,
                    near=word,
                )
            )
        self.notify(self.points)

    def illustrated(self, found: Exploration) -> Exploration:
        """With small pictures of what was painted, where they are wanted; those that cannot be made are left out."""
        pictures: dict[str, str] = {}
        try:
            with raising_out_of_memory():
                for text, latent in self.looks.painted.items() if self.settings.pictures else ():
                    explicit = self.explicit or guard.is_explicit_prompt(text)
                    pictures[text] = thumbnail(self.subject.model, latent, explicit)
        except ErasureError as error:
            self._tell(f"pictures left out: {error}")
        return replace(found, points=tuple(replace(p, thumbnail=pictures.get(p.text, "")) for p in found.points))

    def _result(self) -> Exploration:
        place, names = clusters(torch.stack(self.sketches), [point.text for point in self.points])
        points = [replace(point, cluster=cluster) for point, cluster in zip(self.points, place, strict=True)]
        return Exploration(
            words=self.concept.words,
            points=ordered(points),
            threshold=round(self.field.scorer.threshold, 5),
            clusters=names,
            explicit=self.explicit,
            erased=bool(self.subject.sets),
            levels=tuple(self.levels),
            seconds=round(monotonic() - self.started, 2),
            calls=self.subject.calls,
            seed=self.settings.seed,
            stopped=self.stopped,
            looked=len(self.looks.seen),
            unsettled=self.looks.unsettled,
            dismissed=self.looks.dismissed,
            words_read=self.field.words_read[0],
            words_known=self.field.words_read[1],
        )


def _sketch(vectors: Tensor) -> Tensor:
    """A few numbers of each prompt's end vectors [B, PLACES, D], near in cosine where these are; [B, SKETCH]."""
    flat = vectors.flatten(1).cpu()
    directions = torch.randn(flat.shape[1], SKETCH, generator=torch.Generator().manual_seed(0))
    sketch: Tensor = flat @ directions / SKETCH**0.5
    return sketch
