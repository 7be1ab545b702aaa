"""What else a loaded model reads as a concept, and what it keeps apart from it: found in the model itself.

Two steps, from cheap to sure. The token embeddings nearest to the concept's give candidate words. The loaded model then
judges them: a word belongs to the concept where it steers noisy pictures the same way, measured by the guidance
directions g0(z, w) = eps0(z, w) - eps0(z, "") at states of neutral pictures, and steers them more towards the concept
than towards any kept prompt. Words that look near but steer elsewhere are its neighbours: they are worth keeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .concept import Concept
from .errors import Cancelled
from .model import PromptModel
from .progress import Progress, Report, Silent
from .sampling import seeded_noise
from .self_check import similarity
from .trajectory import encode_each

NEUTRAL = (
    "a photo of a person", "a landscape", "a city street", "a dog", "a cat", "a tree", "a house", "a car", "a table",
    "a portrait of a woman", "a portrait of a man", "food on a plate", "the sky with clouds", "a painting", "a flower",
    "a bird",
)  # fmt: skip
"""Everyday prompts, kept where the user names none."""


STOP_WORDS = frozenset(["a", "an", "the", "of", "on", "in", "with", "and", "photo", "picture", "painting", "portrait"])
"""Words of kept prompts that say nothing about what is kept."""


@dataclass(frozen=True)
class Survey:
    """How far to look around.

    Args:
        candidates: nearest words of the vocabulary that are judged.
        states: noisy pictures on which they are judged.
        alike: least cosine of guidance directions for a word that belongs to the concept.
        seed: of the pictures.
    """

    candidates: int = 48
    states: int = 8
    alike: float = 0.6
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """A word near the concept.

    Args:
        word: as it is typed.
        likeness: cosine of its guidance direction with the concept's.
        belongs: whether the model reads it as the concept.
        kept: whether a prompt to keep says it.
    """

    word: str
    likeness: float
    belongs: bool
    kept: bool = False


@torch.no_grad()
def nearest_words(model: PromptModel, phrases: Sequence[str], count: int) -> list[str]:
    """The words of the vocabulary whose embeddings are nearest to those of phrases, nearest first, themselves left out.

    Only whole words of three or more letters: what is typed must be read as that one token.
    """
    table = model.token_tables()[0].float()
    own = sorted({token for ids in model.tokenize(phrases) for token in ids})
    near = similarity(table, table[own]).amax(dim=1).topk(min(16 * count, len(table))).indices.tolist()
    words = []
    for token in near:
        word = model.detokenize([token])
        if token not in own and len(word) > 2 and word.isalpha() and model.tokenize([word])[0] == [token]:
            words.append(word)
        if len(words) == count:
            break
    return words


@torch.no_grad()
def survey(model: PromptModel, concept: Concept, settings: Survey, progress: Progress | None = None) -> list[Found]:
    """Judge the words around a concept, most alike first, and the words of the prompts to keep.

    A word belongs to the concept if it is alike enough, and more like the concept than like any word of a prompt to
    keep or of everyday prompts.

    Raises:
        Cancelled: the user stopped.
    """
    user, anchors = _said(concept.keep, concept), _said((*concept.keep, *NEUTRAL), concept)
    words = [word for word in nearest_words(model, concept.words, settings.candidates) if word not in anchors]
    prompts = [*concept.words, *anchors, *words]
    directions = _directions(model, prompts, settings, progress or Silent())
    own, others, judged = torch.split(directions, [len(concept.words), len(anchors), len(words)])
    to_anchors = similarity(others, own).amax(dim=1).tolist()
    found = [Found(word, like, False, True) for word, like in zip(anchors, to_anchors, strict=True) if word in user]
    like, unlike = similarity(judged, own).amax(dim=1), similarity(judged, others)
    nearest_other = unlike.amax(dim=1) if anchors else torch.full_like(like, -1.0)
    belongs = ((like >= settings.alike) & (like > nearest_other)).tolist()
    found += [Found(*row) for row in zip(words, like.tolist(), belongs, strict=True)]
    return sorted(found, key=lambda one: -one.likeness)


def _said(prompts: Sequence[str], concept: Concept) -> list[str]:
    """The telling words of prompts, without those of the concept."""
    own = {part.casefold() for word in concept.words for part in word.split()}
    every = dict.fromkeys(word.casefold() for prompt in prompts for word in prompt.split())
    return [word for word in every if word not in STOP_WORDS and word not in own]


def _directions(model: PromptModel, prompts: Sequence[str], settings: Survey, progress: Progress) -> Tensor:
    """Guidance directions [P, states * C * H * W] of prompts at states of neutral pictures."""
    z, t = _neutral_states(model, settings)

    def predicted(prompt: str) -> Tensor:
        return model.predict(z, t, encode_each(model, [prompt] * len(z))).flatten().cpu()

    empty, rows = predicted(""), []
    for i, prompt in enumerate(prompts):
        if progress.cancelled():
            raise Cancelled("Stopped while looking for words near the concept.")
        progress.update(Report("looking for words", i, len(prompts)))
        rows.append(predicted(prompt) - empty)
    return torch.stack(rows)


def _neutral_states(model: PromptModel, settings: Survey) -> tuple[Tensor, Tensor]:
    """States on the way to pictures without a prompt, each from its own point of the noisier half of the way."""
    count = settings.states
    z = seeded_noise(model.latent_shape, range(settings.seed, settings.seed + count)).to(model.device)
    timesteps = model.schedule.timesteps(12)
    states, times = [], []
    for i, now in enumerate(timesteps[:8]):
        t = torch.full((count,), now, device=model.device)
        if i >= 1:
            states.append(z)
            times.append(t)
        predicted = model.predict(z, t, encode_each(model, [""] * count))
        z = model.schedule.step(z, t, torch.full_like(t, timesteps[i + 1]), predicted)
    rows = [row % len(states) for row in range(count)]
    return torch.stack([states[s][row] for row, s in enumerate(rows)]), torch.stack(
        [times[s][row] for row, s in enumerate(rows)]
    )


def with_neighbours(concept: Concept, found: Sequence[Found], most: int) -> Concept:
    """A concept that also keeps the words near it that do not belong to it, at most ``most``."""
    near = [f"a {one.word}" for one in found if not (one.belongs or one.kept)][:most]
    return _keeping(concept, (*concept.keep, *near))


def with_everyday_keep(concept: Concept) -> Concept:
    """A concept that also keeps everyday prompts, for a user who named none."""
    return _keeping(concept, (*concept.keep, *NEUTRAL))


def expanded(concept: Concept, found: Sequence[Found], most: int) -> Concept:
    """A concept with the words that the model reads as it, at most ``most`` of them, but none that a prompt to keep or
    the alternative says."""
    said = {word for prompt in (*concept.keep, concept.alternative or "") for word in prompt.casefold().split()}
    words = [one.word for one in found if one.belongs and one.word.casefold() not in said][:most]
    return replace(concept, words=(*concept.words, *words))


def _keeping(concept: Concept, prompts: Sequence[str]) -> Concept:
    """The concept with those prompts to keep that do not say it."""
    erased = [word.casefold() for word in concept.words]
    return replace(concept, keep=tuple(p for p in prompts if not any(word in p.casefold() for word in erased)))
