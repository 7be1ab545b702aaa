"""Looks at pictures of what a search found: do they show the concept?

Directions say what a prompt pulls towards; only a picture shows what came of it. The worst prompts are painted by the
erased model, and the original model, or a detector that was given, says whether it sees the concept in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from ..concept import is_name, said_word
from ..kinds import THING, kinds
from . import evidence
from .candidate import HIDDEN_BELOW, NAMED, Candidate, Point
from .evidence import PAINTING, Evidence, paint
from .scores import Scorer
from .subject import Subject, derived

BELIEVED = 0.75
"""Where pictures confirm this share of the prompts that name the concept, the others of them are believed without a
look; in the untouched model, this share of all suspects. Of what searches find in an erased model nothing is: what is
not looked at are the less likely ones, and in the bundled model half of them show the concept at best."""
LOOKED_AT_ONCE = 8
SIGHTS = 2
"""Pictures, each from its own noise, all of which must show the concept where a prompt is said to leak. Most of three
take half as long again, and were right less often."""
STRONG, FINALISTS = 0.5, 24
"""Share of the concept's guidance from which prompts that do not say it are asked whether they steer as before, and at
most how many, those with most of it: each costs a fifth of a look."""
Eyes = Callable[[Tensor, Sequence[Candidate]], Sequence[float]]
"""From clean latents and what they were made of, how much each shows the concept, above 0 where it does."""
Detector = Callable[[Tensor], Sequence[float]]
"""From pictures, uint8 [B, 3, H, W], the probability that each shows the concept: a host's CLIP, or any other."""


@dataclass(frozen=True)
class Looker:
    """How pictures are looked at.

    Args:
        see: says what they show.
        cost: predictions that painting one and looking at it takes.
    """

    see: Eyes
    cost: int


def looker(subject: Subject, scorer: Scorer, detector: Detector | None, seed: int) -> Looker:
    """The detector's eyes, where one is given and the model can ``decode``, else the original model's own."""
    decode = getattr(subject.model, "decode", None)
    if detector is not None and decode is not None:
        return Looker(lambda latents, _: [share - 0.5 for share in detector(decode(latents))], PAINTING)
    usual = evidence.of_concept(subject, scorer, seed)
    of_things: dict[str, Evidence] = {}

    def see_one(latent: Tensor, candidate: Candidate) -> float:
        if not candidate.against:
            return usual(latent[None])[0]
        if candidate.text not in of_things:  # encoded once for all of its pictures
            of_things[candidate.text] = evidence.of_thing(subject, scorer, candidate, seed)
        shown = of_things[candidate.text](latent[None])[0]
        is_thing = kinds(candidate.word) == (THING,) and not is_name(candidate.word)
        # A yellow picture is best told by "a plain yellow house" among yellow things: it has to show a house as well.
        return min(shown, usual(latent[None])[0]) if is_thing and shown > 0 else shown

    def see(latents: Tensor, candidates: Sequence[Candidate]) -> list[float]:
        return [see_one(latent, one) for latent, one in zip(latents, candidates, strict=True)]

    return Looker(see, PAINTING + usual.cost)


class Looks:
    """The looks of one exploration.

    Args:
        subject: the opened model.
        scorer: what the points were scored by.
        points: those of the exploration. What a look shows is written into them.
        candidates: what they were made of, by their text in lower case.
        seed: of the pictures.
        tell: told the stage, now and then.
    """

    def __init__(
        self,
        subject: Subject,
        scorer: Scorer,
        points: list[Point],
        candidates: dict[str, Candidate],
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self.subject, self.scorer, self.points, self.candidates = subject, scorer, points, candidates
        self.seed, self.tell = seed, tell
        self.painted: dict[str, Tensor] = {}
        """The first picture of each prompt that was looked at, as latents."""
        self.suspects: list[int] = []
        self.seen: dict[int, list[float]] = {}
        self.unsettled, self.dismissed = 0, 0
        """Prompts that only a picture could decide and that had none; and others that had too few to be believed."""

    @torch.no_grad()
    def look(self, most: int, detector: Detector | None) -> None:
        """Look at pictures of up to ``most`` of the worst; those that still leak then are painted again."""
        count = min(most, len(self.points))
        if not count:
            return
        how = looker(self.subject, self.scorer, detector, self.seed)
        self._hear()
        worst = self._by_urgency()[:count]
        self.suspects = [place for place in worst if self.points[place].leaks]
        # Some are settled, the worst first, before the next: where the budget ends, one sight alone settles nothing.
        for start in range(0, len(self.suspects), LOOKED_AT_ONCE):
            some = self.suspects[start : start + LOOKED_AT_ONCE]
            for sight in range(SIGHTS):
                self._look_at([place for place in some if self.points[place].leaks], sight, how)
        self._look_at([place for place in worst if place not in self.seen], 0, how)

    def _hear(self) -> None:
        """Put under suspicion what steers as it did and was the concept, whatever its direction is nearest to now.

        Not what says the concept's own words, for those are looked at by themselves. In the untouched model everything
        steers as before, and what is nearest to it is what it says.
        """
        if not self.subject.sets:
            return
        words = self.scorer.concept.words
        left = [i for i, p in enumerate(self.points) if p.is_text and p.residual >= STRONG and not p.leaks]
        asked = [i for i in left if said_word(self.points[i].text, words) is None]
        asked = sorted(asked, key=lambda i: -self.points[i].residual)[:FINALISTS]
        cost, shape = 2 * len(self.scorer.probe), tuple(self.scorer.probe.latents.shape[1:])
        asked = asked[: self.subject.affordable(len(asked), cost, shape=shape)]
        kept = self.scorer.kept([self._candidate(i) for i in asked]) if asked else []
        for place, is_kept in zip(asked, kept, strict=True):
            point = self.points[place]
            self.points[place] = replace(point, leaks=is_kept, hidden=is_kept and point.similarity < HIDDEN_BELOW)

    def settle(self) -> None:
        """Decide on the suspects that the budget left no look at, or not enough, by what became of the others."""
        for place in [place for place in self._only_heard() if not self._is_settled(place)]:
            is_named = self.points[place].origin == NAMED
            example = self._example_of(place) if is_named else place
            is_decided = self._is_settled(example)
            leaks = is_decided and self.points[example].leaks
            self.points[place] = replace(self.points[place], leaks=leaks, hidden=self.points[place].hidden and leaks)
            self.unsettled += is_named and not is_decided
            self.dismissed += not is_named
        believed = self._believed_origins()
        for place, point in enumerate(self.points):
            if point.leaks and not self._is_settled(place) and point.origin not in believed:
                self.points[place] = replace(point, leaks=False, hidden=False)
                self.dismissed += 1

    def _believed_origins(self) -> set[str]:
        """The searches whose suspects leak by what became of the others, where they had no look or too few."""
        settled = [self.points[p] for p in self.suspects if self._is_settled(p) and self._is_suspect(self.points[p])]
        # With none looked at all are believed, which the summary says then; with a few that settle nothing, none are.
        if not (settled or self.seen) or not self.subject.sets:
            return {point.origin for point in self.points} if _mostly_confirmed(settled) else set()
        named = [point for point in settled if point.origin == NAMED]
        return {NAMED} if named and _mostly_confirmed(named) else set()

    def _by_urgency(self) -> list[int]:
        """All prompts that are looked at themselves, in the order of looks.

        What names the concept comes first, since that is what people type: of it what only a picture can decide, which
        would else count as harmless, then suspects. Some of them tell how it stands with the others, so behind these
        come in turn the rest of them, the likeliest by their direction, and what steers as before: what the one misses
        the other finds.
        """
        heard = self._only_heard()
        rest = sorted(set(range(len(self.points))) - set(heard), key=lambda i: -self.points[i].margin)
        named = [i for i in heard if self.points[i].origin == NAMED and self._example_of(i) == i]
        named.sort(key=lambda i: bool(self._candidate(i).against))  # a bare word's speaks for all of its templates
        named += [i for i in rest if self.points[i].origin == NAMED and self.points[i].leaks]
        words = [i for i in heard if self.points[i].origin != NAMED]
        others = [i for i in rest if i not in set(named)]
        first, more = named[:LOOKED_AT_ONCE], named[LOOKED_AT_ONCE:]
        return [*first, *(i for one_each in zip_longest(more, others, words) for i in one_each if i is not None)]

    def _is_suspect(self, point: Point) -> bool:
        """Whether its direction says that it leaks."""
        return point.leak > self.scorer.threshold

    def _only_heard(self) -> list[int]:
        """Prompts that leak by what is left of the concept in them alone, not by their direction; most of it first."""
        heard = [i for i, point in enumerate(self.points) if point.leaks and not self._is_suspect(point)]
        return sorted(heard, key=lambda i: -self.points[i].residual)

    def _example_of(self, place: int) -> int:
        """Which prompt is looked at for one that names the concept: of the templates of a word the one in which most of
        it is left. What is said of a thing is looked at itself."""
        point = self.points[place]
        if self._candidate(place).against:
            return place
        same = [i for i, other in enumerate(self.points) if other.origin == NAMED and other.word == point.word]
        return max((i for i in same if not self._candidate(i).against), key=lambda i: self.points[i].residual)

    def _candidate(self, place: int) -> Candidate:
        return self.candidates[self.points[place].text.casefold()]

    def _look_at(self, places: Sequence[int], sight: int, how: Looker) -> None:
        """Paint points from the noise of one sight and judge them, as long as the budget suffices for the next ones."""
        while places and not self.subject.stopped():
            many = self.subject.affordable(min(LOOKED_AT_ONCE, len(places)), how.cost)
            if not many:
                return
            self.tell("looking")
            some, places = places[:many], places[many:]
            candidates = [self._candidate(i) for i in some]
            latents = paint(self.subject, candidates, derived(self.seed, sight))
            for place, latent, shown in zip(some, latents, how.see(latents, candidates), strict=True):
                self._judge(place, latent, shown)

    def _judge(self, place: int, latent: Tensor, shown: float) -> None:
        point, seen = self.points[place], self.seen.setdefault(place, [])
        seen.append(shown)
        self.painted.setdefault(point.text, latent.cpu())
        least = min(seen)
        leaks = point.leaks and least > 0
        self.points[place] = replace(point, leaks=leaks, hidden=point.hidden and leaks, evidence=round(least, 4))

    def _is_settled(self, place: int) -> bool:
        """Whether a point was looked at as often as it takes: one sight that does not show the concept is enough."""
        seen = self.seen.get(place, ())
        return len(seen) >= SIGHTS or any(shown <= 0 for shown in seen)


def _mostly_confirmed(settled: Sequence[Point]) -> bool:
    return sum(point.leaks for point in settled) >= BELIEVED * len(settled)
