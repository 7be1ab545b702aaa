"""Words near to some words: the nearest of the vocabulary, those around what is kept, and how prompts to keep say them.

Only the text encoder is asked here. What a word does to pictures is the business of ``survey``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .concept import BEFORE, IN_PLACE, MAX_LENGTH, Concept, Frame, frame, without_concept
from .everyday import PROMPTS
from .model import LoadedModel, PromptModel, fitting, has_room, whole_word
from .self_check import similarity
from .spread import spread

PUNCTUATION = ".,;:!?()[]{}<>|\"'"
CLOSE = 4
"""So many words nearest to the concept's are never taken for something else without a look at what they paint."""
LONGEST_FRAME = 120
"""Characters of a kept prompt in which words are compared: longer ones tell no more, and leave no room for a word."""
MOST_ANCHORS = 64
"""Words of the prompts to keep, evenly spread over them, that are compared with: each costs as much as a candidate."""
FRAMES_READ = 8
"""Kept prompts in which the text encoder compares words."""
SAID_OF = ("a house", "a car")
"""What colours and the like are said of where no prompt to keep tells: everyday ones name people and places, and a blue
portrait shows little of blue. (Measured on the nine colours and patterns of a second picture world, one word of each
given: of 21 further words 17 are found so, 11 in everyday prompts.)"""
STOP_WORDS = frozenset(["a", "an", "the", "of", "on", "in", "with", "and", "photo", "picture", "painting", "portrait"])
"""Words of kept prompts that say nothing about what is kept."""


@torch.no_grad()
def nearest_words(model: PromptModel, phrases: Sequence[str], count: int) -> list[str]:
    """The words of the vocabulary whose embeddings are nearest to those of phrases, nearest first, themselves left out.

    Only whole words, as ``whole_word`` says.
    """
    return _nearest(model, F.normalize(model.token_tables()[0].float(), dim=-1), phrases, count)


def _nearest(model: PromptModel, table: Tensor, phrases: Sequence[str], count: int) -> list[str]:
    """``nearest_words`` with the embeddings scaled to unit length."""
    own = sorted({token for ids in model.tokenize(phrases) for token in ids})
    near = (table @ table[own].T).amax(dim=1).topk(min(16 * count, len(table))).indices.tolist()
    words: list[str] = []
    for token in near:
        word = None if token in own else whole_word(model, token)
        if word is not None:
            words.append(word)
        if len(words) == count:
            break
    return words


@torch.no_grad()
def neighbours_of_kept(model: PromptModel, concept: Concept, each: int, frames: int = FRAMES_READ) -> dict[str, str]:
    """The ``each`` words of the vocabulary nearest to each word of the prompts to keep, with that word, but none that
    the text encoder reads as nearer to the concept.

    A user who keeps "a red ring" means hoops as well. Only the text encoder is asked: each word alone and in ``frames``
    of the prompts to keep.
    """
    anchors = telling_words([prompt for prompt in concept.keep if prompt], concept)
    own = {word.casefold() for word in concept.words}
    own |= set(nearest_words(model, concept.words, CLOSE))
    near = words_around(model, anchors, each)
    words = [word for word in near if word not in own and word not in anchors]
    if not words:
        return {}
    read = _read(model, [*concept.words, *anchors, *words], frames_in_kept(concept, frames))
    ours, theirs, judged = torch.split(read, [len(concept.words), len(anchors), len(words)])
    to_concept, to_kept = (similarity(judged, others).amax(dim=1) for others in (ours, theirs))
    return {word: near[word] for word, apart in zip(words, (to_concept < to_kept).tolist(), strict=True) if apart}


def words_around(model: PromptModel, anchors: Sequence[str], each: int) -> dict[str, str]:
    """The words nearest to each of some words, with the first of those that they are near to."""
    if not (anchors and each):  # before the whole table is copied
        return {}
    found: dict[str, str] = {}
    table = F.normalize(model.token_tables()[0].float(), dim=-1)
    for anchor in anchors:
        for word in _nearest(model, table, [anchor], each):
            found.setdefault(word, anchor)
    return found


def _read(model: PromptModel, words: Sequence[str], frames: Sequence[Frame]) -> Tensor:
    """What the text encoder makes of words in frames, relative to the frames without them; [W, frames * D]."""

    def ends(prompts: list[str]) -> Tensor:
        encoded = model.encode(prompts)
        rows = torch.arange(len(encoded), device=encoded.context.device)
        states: Tensor = encoded.context[rows, torch.tensor(encoded.ends, device=rows.device)]
        return states.float()

    frames = frames_with_room(model, frames, words)
    without = ends([room.without for room in frames])
    return torch.stack([(ends([room.say(word) for room in frames]) - without).flatten() for word in words])


def telling_words(prompts: Sequence[str], concept: Concept) -> list[str]:
    """The telling words of prompts, without those of the concept, at most ``MOST_ANCHORS``."""
    own = {word.casefold() for word in concept.words}
    every = dict.fromkeys(bare(word) for prompt in prompts for word in prompt.split())
    telling = [word for word in every if word and word not in STOP_WORDS and word not in own]
    return list(spread(telling, MOST_ANCHORS))


def bare(word: str) -> str:
    """A word as it is compared: without punctuation around it, and in lower case."""
    return word.strip(PUNCTUATION).casefold()


def frames_in_kept(concept: Concept, count: int) -> list[Frame]:
    """Room for a word alone, and in ``count`` of the prompts to keep: in the place of their last word or before it."""
    keep = [prompt for prompt in concept.keep if prompt and len(prompt) <= LONGEST_FRAME]
    inside = [frame(prompt, (IN_PLACE, BEFORE)[i % 2]) for i, prompt in enumerate(keep[:count])]
    return [Frame(), *inside]


def frames_of_things(count: int) -> list[Frame]:
    """Room for a word alone, and said of up to ``count`` of ``SAID_OF``."""
    return [Frame(), *(frame(thing, BEFORE) for thing in SAID_OF[:count])]


def frames_with_room(model: PromptModel, frames: Sequence[Frame], words: Sequence[str]) -> list[Frame]:
    """Those frames in which the longest of some words can still be said; the word alone always is."""
    _, longest = max(zip(map(len, model.tokenize(words)), words, strict=True))
    return [room for room in frames if room == Frame() or has_room(model, room.say(longest))]


def with_neighbours(model: LoadedModel, concept: Concept, near: Mapping[str, str]) -> Concept:
    """A concept that also keeps some words: each in the place of the word of a prompt to keep that it is near to, so
    that a colour stands where a colour stood; those near to none in turn alone and in the place of the last word.

    Args:
        model: reads the prompts; what is too long for it is left out.
        concept: the concept.
        near: each word with the word that it is near to, or with nothing.
    """
    frames = [Frame("a"), *(frame(prompt, IN_PLACE) for prompt in concept.keep if " " in prompt)]
    turn = 0
    said: list[str] = []
    for word, anchor in near.items():
        own = [prompt for prompt in concept.keep if anchor and anchor in map(bare, prompt.split())]
        if own:
            prompt = own[len(said) % len(own)]
            said.append(" ".join(word if bare(part) == anchor else part for part in prompt.split()))
        else:
            said.append(frames[turn % len(frames)].say(word))
            turn += 1
    short = fitting(model, [prompt for prompt in said if len(prompt) <= MAX_LENGTH])
    return replace(concept, neighbours=without_concept((*concept.neighbours, *short), concept))


def with_everyday_keep(model: LoadedModel, concept: Concept) -> Concept:
    """A concept that also keeps everyday prompts, those that the model reads whole, for a user who named none."""
    return replace(concept, keep=without_concept((*concept.keep, *fitting(model, PROMPTS)), concept))
