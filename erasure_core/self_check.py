"""SAGE's self-check: find prompts at the boundary of a concept that an erased model still reads as the concept.

Published (SAGE, arXiv 2506.09363, 2025): the search is inside-out. It starts at the concept's own prompt, keeps
the concept's tokens and optimises only the embeddings of the template words around it, tau_p = [tau_t, tau_c]. The
loss is our reconstruction:

    min over tau_t of  -cos(E(tau_p), E0(tau_c)) + l_dom relu(m - cos(E0(tau_p), E0(tau_c)))
                       + l_div mean_k cos(E0(tau_p), E0(tau_p^k))

the changed model still reads it as the concept, the original agrees that it belongs to the domain, and it is none of
those found before. E is what the model makes of a prompt: in ``text`` space the state of its end token, in ``keys``
space the stacked keys and values that cross-attention makes of that state, which sees changes of the UNet too. Both
are taken relative to the empty prompt, whose state all prompts share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .delta import DeltaSet
from .layers import is_text, reads_context
from .model import Conditioning, PromptModel, each_once, gradient_scale

TEMPLATES = (
    "a photo of a {}", "a picture of the {}", "one {} on a table", "a drawing of a big {}", "a small {} in the street",
    "the same {} once more", "a scene with a {} in it", "something like a {} at night", "an old {} in a field",
    "a close view of the {}", "two people looking at a {}", "a painting in which a {} stands", "a bright {} up close",
    "this is a {} and nothing else",
)  # fmt: skip
"""Where searches start: everyday sentences around the concept, with varying numbers of words to change."""


@dataclass(frozen=True)
class SelfCheck:
    """How to search.

    Args:
        starts: searches in one batch.
        steps: Adam steps.
        learning_rate: of Adam, as a share of the spread of the token embeddings.
        domain: weight l_dom of staying in the domain.
        margin: least similarity m to the concept in the original.
        diversity: weight l_div of differing from past finds.
        free: also the concept's own tokens may change: finds words that nobody named, for exploration.
        space: ``text``, ``keys``, or ``auto``: text where only text encoders changed.
        jitter: spread of the starting noise on the template's embeddings, in units of the table's.
    """

    starts: int = 8
    steps: int = 15
    learning_rate: float = 0.2
    domain: float = 1.0
    margin: float = 0.5
    diversity: float = 0.3
    free: bool = False
    space: str = "auto"
    jitter: float = 0.3


@dataclass(frozen=True)
class BoundaryPoints:
    """What was found, one row for each search.

    Args:
        embeddings: token embeddings [B, L, D] for each text encoder.
        ends: place of each end token.
        said: place of the first token of each one's phrase, and how many tokens it has.
        words: the nearest real prompt: each changed token as the nearest of the vocabulary.
        features: what the original makes of each point [B, F], relative to the empty prompt.
        remaining: cos(E(tau_p), E0(tau_c)) [B]: how much the changed model still reads it as the concept.
        belonging: cos(E0(tau_p), E0(tau_c)) [B]: how much the original does.
    """

    embeddings: list[Tensor]
    ends: tuple[int, ...]
    said: tuple[tuple[int, int], ...]
    words: list[str]
    features: Tensor
    remaining: Tensor
    belonging: Tensor


class Reader:
    """E of the module's docstring: what a model, as it is now, makes of prompts."""

    def __init__(self, model: PromptModel, deltas: DeltaSet, space: str = "auto") -> None:
        self.model = model
        only_text = all(is_text(name) for name in deltas)
        self.in_keys = space == "keys" or (space == "auto" and not only_text)
        self.layers = [layer for name, layer in sorted(model.layers().items()) if reads_context(name)]

    def __call__(self, conditioning: Conditioning, empty: Tensor | None = None) -> Tensor:
        """Features [B, F], relative to the empty prompt as the model reads it, or as it was found to read it before."""
        return self._raw(conditioning) - (self.empty() if empty is None else empty)

    def empty(self) -> Tensor:
        """What the model makes of the empty prompt, [1, F]."""
        return self._raw(self.model.encode([""]))

    def _raw(self, conditioning: Conditioning) -> Tensor:
        rows = torch.arange(len(conditioning), device=conditioning.context.device)
        ends = torch.tensor(conditioning.ends, device=rows.device)
        states = conditioning.context[rows, ends]
        if not self.in_keys:
            return states.float()
        # As the network gets them: hosts read text in float32 where the network computes in 16 bits.
        given = states.to(self.model.device, self.model.dtype)
        return torch.cat([layer(given).float() for layer in self.layers], dim=-1)


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """Cosines [A, B] of all rows of [A, F] with all of [B, F]."""
    similar: Tensor = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T
    return similar


def self_check(
    model: PromptModel,
    deltas: DeltaSet,
    phrases: str | Sequence[str],
    settings: SelfCheck,
    generator: torch.Generator,
    past: Tensor | None = None,
) -> BoundaryPoints:
    """Search from one phrase or several in turn. Called inside ``model.trainable()`` with ``deltas`` attached.

    Args:
        model: the loaded model.
        deltas: the change that is checked.
        phrases: how the concept is called; search i starts from the i-th, and around again.
        settings: how to search.
        generator: of templates and starting noise.
        past: ``features`` of earlier finds [K, F], to differ from.

    Raises:
        PromptTooLong: a phrase has more tokens than the text encoder reads.
    """
    said = [phrases] if isinstance(phrases, str) else list(phrases)
    search = _Search(model, deltas, [said[i % len(said)] for i in range(settings.starts)], settings, generator)
    for _ in range(settings.steps):
        loss = search.loss(past) * gradient_scale(model.dtype)
        # Of the moves alone: ``backward`` would leave gradients on the change that is being trained, towards the
        # concept and so large that Adam hardly moves for a hundred steps after them.
        for move, gradient in zip(search.moves, torch.autograd.grad(loss, search.moves), strict=True):
            move.grad = gradient
        search.optimizer.step()
    return search.found()


class _Search:
    """The running search: a batch of prompts, of which some tokens' embeddings move."""

    def __init__(
        self,
        model: PromptModel,
        deltas: DeltaSet,
        phrases: Sequence[str],
        settings: SelfCheck,
        generator: torch.Generator,
    ) -> None:
        self.model, self.deltas, self.settings = model, deltas, settings
        self.reader = Reader(model, deltas, settings.space)
        turns = torch.randint(len(TEMPLATES), (settings.starts,), generator=generator).tolist()
        self.ids, self.movable, self.said = _templates(model, turns, phrases, settings.free)
        rows, self.ends = model.token_rows(self.ids)
        self.tables = model.token_tables()
        self.fixed = [table[row].float() for table, row in zip(self.tables, rows, strict=True)]
        self.mask = _mask(self.movable, self.fixed[0])
        self.moves = [
            nn.Parameter(settings.jitter * float(table.std()) * torch.randn(base.shape, generator=generator).to(base))
            for base, table in zip(self.fixed, self.tables, strict=True)
        ]
        groups = [
            {"params": [move], "lr": settings.learning_rate * float(table.std())}
            for move, table in zip(self.moves, self.tables, strict=True)
        ]
        self.optimizer = torch.optim.Adam(groups)
        with torch.no_grad():
            self.empty = self.reader.empty()  # the change is the same in every step
            with deltas.off():
                self.empty_before = self.reader.empty()
                distinct, places = each_once(phrases)
                read = model.encode(distinct)[places]
                self.concept = self.reader(read, self.empty_before)

    def embeddings(self) -> list[Tensor]:
        return [base + move * self.mask for base, move in zip(self.fixed, self.moves, strict=True)]

    def read(self) -> tuple[Tensor, Tensor]:
        """What the changed model and what the original make of the points."""
        embeddings = self.embeddings()
        now = self.reader(self.model.encode_embeddings(embeddings, self.ends), self.empty)
        with self.deltas.off():
            before = self.reader(self.model.encode_embeddings(embeddings, self.ends), self.empty_before)
        return now, before

    def loss(self, past: Tensor | None) -> Tensor:
        s = self.settings
        now, before = self.read()
        remaining, belonging = self._to_concept(now), self._to_concept(before)
        loss = -remaining + s.domain * F.relu(s.margin - belonging)
        if past is not None and len(past):
            loss = loss + s.diversity * similarity(before, past).mean(dim=1)
        return loss.sum()

    @torch.no_grad()
    def found(self) -> BoundaryPoints:
        now, before = self.read()
        embeddings = self.embeddings()
        words = [self._words(embeddings[0][i], i) for i in range(len(self.ids))]
        return BoundaryPoints(
            [e.detach() for e in embeddings],
            self.ends,
            self.said,
            words,
            before,
            self._to_concept(now),
            self._to_concept(before),
        )

    def _to_concept(self, features: Tensor) -> Tensor:
        """Cosine of each point with its own phrase, [B]."""
        return F.cosine_similarity(features, self.concept, dim=-1)

    def _words(self, embeddings: Tensor, row: int) -> str:
        """The point as a prompt that can be typed."""
        ids = list(self.ids[row])
        places = self.movable[row]
        if places:
            near = similarity(embeddings[[place + 1 for place in places]], self.tables[0].float())
            (frame, *_), _ = self.model.token_rows([[]])
            near[:, torch.unique(frame[0])] = -torch.inf  # begin, end and padding: nobody can type those
            near = near.argmax(dim=1)
            for place, token in zip(places, near.tolist(), strict=True):
                ids[place] = token
        return self.model.detokenize(ids)


def _templates(
    model: PromptModel, turns: Sequence[int], phrases: Sequence[str], free: bool
) -> tuple[list[list[int]], list[list[int]], tuple[tuple[int, int], ...]]:
    """Token ids of each phrase in the template whose turn it is, among those that leave room for it; alone where none
    does. The places among them that may move. And where the phrase stands in the whole row: its first place there, one
    further because of the begin token, and its length."""
    ids, movable, said = [], [], []
    frames = [model.tokenize(template.split("{}")) for template in TEMPLATES]
    room = model.token_rows([[]])[0][0].shape[1] - 2
    for turn, concept in zip(turns, model.tokenize(phrases), strict=True):
        fitting = [frame for frame in frames if sum(map(len, frame)) + len(concept) <= room] or [[[], []]]
        before, after = fitting[turn % len(fitting)]
        ids.append([*before, *concept, *after])
        said.append((len(before) + 1, len(concept)))
        around = [*range(len(before)), *range(len(before) + len(concept), len(ids[-1]))]
        movable.append(list(range(len(ids[-1]))) if free else around)
    return ids, movable, tuple(said)


def _mask(movable: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """1 at the places that move, one further because of the begin token; [B, L, 1]."""
    mask = torch.zeros(*like.shape[:2], 1, device=like.device)
    for row, places in enumerate(movable):
        mask[row, [place + 1 for place in places]] = 1
    return mask
