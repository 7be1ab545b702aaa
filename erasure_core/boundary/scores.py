"""Whether a prompt still reaches the concept, with the loaded model itself as the only judge.

The default is the nearest-direction posterior: with g(z, p) = eps(z, p) - eps(z, "") the direction in which a prompt
steers, compare the erased model's direction for the candidate with the original model's directions for the concept,
its look-alikes, neutral prompts and no prompt at all,

    P(k | p) = softmax_k( -||g_e(z, p) - g0(z, k)||^2 / s ),

averaged over states z. A plain projection on the concept's direction (residual guidance) cannot tell the concept from
what looks like it, because their directions are nearly parallel; it is kept as a diagnostic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import guard
from ..concept import Concept, worded
from ..model import fitting
from ..sampling import finite
from ..self_check import similarity
from ..spread import spread
from ..survey import FAINT
from .candidate import Candidate
from .probe import make_probe, probe_calls
from .subject import Subject
from .wording import unrelated_words, with_room

CONCEPT_TEMPLATES = ("{}", "a {}", "a photo of a {}")
HELD_OUT_TEMPLATES = ("the {}", "a picture of the {}")
"""How prompts are worded that the scores are calibrated on: not as those they were made of."""
FALSE_ALARMS = 0.01
"""Share of neutral prompts that the threshold may let pass."""
APART = 0.5
"""Share of the squared distance that the concept makes in a prompt; another word of its kind has to be that far off."""
ALIKE, UNTOUCHED = 0.7, 0.7
"""Cosine with a direction of the concept from which the original model may read it, and share of its own direction that
a prompt has to keep. Of words with so much of both most paint the concept; few others have it."""
MAX_EXPONENT = 60.0
MOST_WORDS, MOST_KEPT = 64, 96
"""Words of the concept, and prompts to keep, that candidates are compared with, evenly spread over all of them: each is
looked at in three times as many states as are kept."""
RIVALS = 6
"""Prompts that pictures are compared with. With look-alikes alone pictures of nothing passed for the concept; with all
that the model knows, or with look-alikes beside these, a true leak was lost to one of them."""


@dataclass(frozen=True)
class Score:
    """What the scores say about one candidate.

    Args:
        margin: how much nearer the concept's direction is than any other, in units of mean squared guidance.
        leak: the posterior of the concept, 0 to 1.
        residual: share of the original guidance towards the concept.
    """

    margin: float
    leak: float
    residual: float


class Scorer:
    """Scores candidates by guidance directions; ``threshold`` is the posterior above which a candidate leaks.

    Args:
        subject: the opened model.
        concept: what is explored; its kept prompts are part of what candidates could mean instead.
        states: states of the probe.
        seed: of all chance.
    """

    @torch.no_grad()
    def __init__(self, subject: Subject, concept: Concept, states: int = 8, seed: int = 0) -> None:
        self.subject, self.concept, model = subject, concept, subject.model
        self.templates = with_room(model, CONCEPT_TEMPLATES, concept.words)
        self.words = spread(concept.words, MOST_WORDS)
        self.inside = [worded(template, word) for word in self.words for template in self.templates]
        words = unrelated_words(concept)
        kept = spread(concept.keep, MOST_KEPT)
        # Every other neutral word only: the rest is held out, to calibrate on.
        everyday = fitting(model, [f"a {word}" for word in words[::2]])
        self.outside = list(dict.fromkeys(["", *kept, *everyday]))
        held_out = [HELD_OUT_TEMPLATES[i % 2].format(word) for i, word in enumerate(words[1::2])]
        held_out += [f"{prompt}, {words[2 * i % len(words)]}" for i, prompt in enumerate(kept)]
        # Together a kept prompt and an everyday word may say what neither says alone.
        self.neutral = fitting(model, [prompt for prompt in held_out if not guard.is_forbidden(prompt)])
        with subject.original():
            inside, outside = subject.encode_texts(self.inside), subject.encode_texts(self.outside)
        pictured = [prompt for prompt in self.outside if prompt][: 3 * states]
        calls = probe_calls(len(inside) + len(outside), states) + states * 2 * (len(self.words) + len(self.neutral))
        with subject.preparing(calls):
            self.probe, self.towards, self.away = make_probe(subject, inside, outside, pictured, states, seed)
            self._drop_synonyms()
            self.temperature = self._fit_temperature()
            self.threshold = self._fit_threshold()
        self._original: dict[str, Tensor] = {}

    def on(self, subject: Subject, threshold: float | None = None) -> Scorer:
        """The same scores for the same model with other erasures on it: what the original model says is kept.

        The threshold is fitted anew, unless one is given.
        """
        other = copy(self)
        other.subject, other.probe = subject, self.probe.seen_by(subject)
        other.threshold = other._fit_threshold() if threshold is None else threshold
        return other

    def _drop_synonyms(self) -> None:
        """Whatever the original model reads as the concept is no alternative to it."""
        same = reads_as(self.away, self.towards, len(self.templates)).tolist()
        stays = [i for i, prompt in enumerate(self.outside) if prompt == "" or not same[i]]
        self.synonyms = [prompt for i, prompt in enumerate(self.outside) if i not in set(stays)]
        self.outside, self.away = [self.outside[i] for i in stays], self.away[stays]

    def word_of(self, place: int) -> str:
        """The concept's word that a prompt of ``inside`` says."""
        return self.words[place // len(self.templates)]

    def margins(self, directions: Tensor) -> Tensor:
        """How much nearer directions [N, F] are to the concept than to all else, [N]."""
        return _distances(directions, self.away).amin(1) - _distances(directions, self.towards).amin(1)

    @torch.no_grad()
    def _fit_temperature(self) -> float:
        """The s under which the posterior is best calibrated on the original model, whose meaning is known: the
        concept's words and neutral words, worded otherwise."""
        words = self.words
        templates = with_room(self.subject.model, HELD_OUT_TEMPLATES, words)
        said = [worded(template, word) for word in words for template in templates]
        with self.subject.original():
            read = self.subject.encode_texts([*said, *self.neutral])
            margins = self.margins(self.probe.directions(self.subject, read, erased=False)).cpu().double()
        labels = torch.tensor([1.0] * len(said) + [0.0] * len(self.neutral), dtype=torch.float64)
        weights = torch.where(labels > 0, 0.5 / len(said), 0.5 / len(self.neutral))
        spread = float(margins.abs().mean().clamp_min(1e-9))
        tried = [spread * 2 ** (step / 2) for step in range(-12, 7)]

        def missed(s: float) -> float:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(margins / s, labels, weights, reduction="sum")
            return float(loss)

        return min(tried, key=missed)

    @torch.no_grad()
    def _fit_threshold(self) -> float:
        """What ``FALSE_ALARMS`` of the neutral prompts pass in the erased model, but at least even odds.

        A quantile, since the scores are no bell: most neutral prompts lie close together just below zero, and some far
        below. Their mean and deviations would ask for more than the concept's own words reach.
        """
        read = self.subject.encode_texts(self.neutral)
        margins = self.margins(self.probe.directions(self.subject, read, erased=True)).cpu()
        edge = float(torch.quantile(margins, 1 - FALSE_ALARMS))
        return self._posterior(max(edge, 0.0))

    def _posterior(self, margin: float) -> float:
        return 1 / (1 + math.exp(-max(-MAX_EXPONENT, min(MAX_EXPONENT, margin / self.temperature))))

    @torch.no_grad()
    def __call__(self, candidates: Sequence[Candidate], erased: bool = True) -> list[Score]:
        """Score candidates, in pieces, so that memory does not grow with their number.

        With ``erased`` false they are scored on the original model.
        """
        each = self.at_once
        scores: list[Score] = []
        for start in range(0, len(candidates), each):
            batch = candidates[start : start + each]
            directions = self.directions(batch, erased)
            margins, residuals = self.margins(directions), self._residuals(directions)
            for i, candidate in enumerate(batch):
                if candidate.against:
                    margins[i], residuals[i] = self._of_thing(directions[i], candidate)
            margins = finite(margins)
            found = zip(margins.tolist(), residuals.tolist(), strict=True)
            scores += [Score(margin, self._posterior(margin), residual) for margin, residual in found]
        return scores

    def _of_thing(self, direction: Tensor, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """Margin and residual of a prompt that says the concept of a thing: how much nearer its direction [F] is to
        what the original model makes of the same prompt than to what it could say in its place.

        In units of the margin that the concept's own words have: with them it shares the threshold.
        """
        own, without = self.original_directions([candidate.text, candidate.against[0]])
        way = own - without
        residual = (direction - without) @ way / way.pow(2).sum().clamp_min(1e-12)
        # Below half the way it is nearer to nothing than to the concept: what else it may say need not be asked.
        asked = self.rivals_of(candidate) if residual > 0.5 else candidate.against[:1]
        rivals = self.original_directions(asked)
        apart = _distances(own[None], rivals).amin().clamp_min(1e-12)
        nearer = _distances(direction[None], rivals).amin() - _distances(direction[None], own[None])[0, 0]
        return nearer / apart * self.margins(self.towards).median(), residual

    def rivals_of(self, candidate: Candidate) -> list[str]:
        """What a prompt that says the concept of a thing is compared with: nothing in its place, and what of the rest
        the original model does not read as the same.

        Another basic colour is never the same, though red and yellow are nearer in a model than blue and indigo are.
        Where there are such, other names of colours may be names of this one, and stay out where they point its way.
        """
        own, without, *others = self.original_directions([candidate.text, *candidate.against])
        way, rest = own - without, torch.stack([other - without for other in others]) if others else own[None][:0]
        if candidate.other:
            are_far = similarity(rest, way[None])[:, 0] < ALIKE
        else:
            are_far = (rest - way).pow(2).sum(1) >= APART * way.pow(2).sum()
        far = zip(candidate.against[1:], are_far.tolist(), strict=True)
        return [candidate.against[0], *(p for p, is_far in far if is_far or p in candidate.other)]

    @torch.no_grad()
    def telling(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those prompts that say the concept of a thing in which it makes a difference in the original model."""
        if not candidates:
            return []
        own = self.original_directions([one.text for one in candidates])
        without = self.original_directions([one.against[0] for one in candidates])
        known = self.knows(own - without).tolist()
        return [one for one, is_known in zip(candidates, known, strict=True) if is_known]

    @torch.no_grad()
    def kept(self, candidates: Sequence[Candidate]) -> list[bool]:
        """Which prompts the original model reads as the concept, by the angle, and steer in the erased one as they did.

        Whatever else may be as near: where a near-synonym takes the concept's place or is kept, that is nearest to all
        words for the concept, though they paint it as before.
        """
        before, after = self.original_directions([one.text for one in candidates]), self.directions(candidates)
        alike = similarity(before, self.towards).amax(1) >= ALIKE
        same = (before * after).sum(1) >= UNTOUCHED * before.pow(2).sum(1)
        found: list[bool] = (alike & same).tolist()
        return found

    @property
    def at_once(self) -> int:
        """Candidates that are scored together."""
        return max(1, 2 * self.subject.batches.most // len(self.probe))

    def directions(self, candidates: Sequence[Candidate], erased: bool = True) -> Tensor:
        """Guidance directions of candidates, [N, F], some at a time."""
        pieces = [candidates[i : i + self.at_once] for i in range(0, len(candidates), self.at_once)]
        with nullcontext() if erased else self.subject.original():
            read = (self.subject.encode(piece) for piece in pieces)
            return torch.cat([self.probe.directions(self.subject, prompts, erased) for prompts in read])

    def original_directions(self, texts: Sequence[str]) -> Tensor:
        """The original model's guidance directions of prompts, [N, F]; each is asked for once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._original]
        if new:
            self._original |= zip(new, self.directions([Candidate(text, "") for text in new], False), strict=True)
        return torch.stack([self._original[text] for text in texts])

    def _residuals(self, directions: Tensor) -> Tensor:
        """rho = <g_e(z, p), g0(z, c)> / ||g0(z, c)||^2, [N]; c is the mean of the concept's prompts."""
        mean = self.towards.mean(0)
        return directions @ mean / mean.pow(2).sum().clamp_min(1e-12)

    def nearest_others(self, count: int) -> list[str]:
        """The prompts that steer most like the concept and are not it: its look-alikes, likest first.

        By angle: what the model does not know hardly steers, and so lies near to everything.
        """
        known = self.knows(self.away).tolist()
        order = similarity(self.away, self.towards).amax(dim=1).argsort(descending=True).tolist()
        return [self.outside[i] for i in order if self.outside[i] and known[i]][:count]

    def rivals(self) -> list[str]:
        """What a picture could show in the concept's place: what lies nearest to it. That is also what the model hardly
        knows, for which it paints nothing in particular."""
        nearest = _distances(self.away, self.towards).amin(1).argsort().tolist()
        return [self.outside[i] for i in nearest if self.outside[i]][:RIVALS]

    def knows(self, directions: Tensor) -> Tensor:
        """Which directions [N, F] of the original model are more than chance, bool [N]."""
        known: Tensor = directions.norm(dim=1) >= FAINT * self.towards.norm(dim=1).mean()
        return known


def reads_as(away: Tensor, towards: Tensor, wordings: int) -> Tensor:
    """Which directions [A, F] are the concept's own under another name, bool [A].

    Those nearer to one of the concept's [W * wordings, F] than the two nearest wordings of one word are to each other:
    a look-alike must not be taken for the concept, so this is strict. With one wording there is nothing to measure by.
    """
    if wordings < 2:
        return torch.zeros(len(away), dtype=torch.bool, device=away.device)
    own = torch.stack([_distances(part, part) for part in torch.split(towards, wordings)])
    between = own + torch.diag(torch.full((wordings,), torch.inf)).to(own)
    return _distances(away, towards).amin(1) < between.amin()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between rows, [A, B]."""
    return (a.pow(2).sum(1)[:, None] + b.pow(2).sum(1)[None] - 2 * a @ b.T).clamp_min(0)
