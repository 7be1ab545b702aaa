"""What the text encoder makes of prompts, kept in place far beyond the prompts whose noise is trained on.

A training that looks at predicted noise sees some dozens of prompts. What it does to all others is chance: a word near
none of them may lose its meaning. The text encoder alone is asked in a hundredth of the time, so it can be asked about
hundreds of words, each time others, among whatever else a prompt says. This is SAGE's global retention taken further:
not only the relations of kept prompts stay, but the states of every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..concept import BEFORE, BESIDE, IN_PLACE, TEMPLATES, Concept, frame, without_concept, worded
from ..everyday import PROMPTS, everyday_words
from ..model import Conditioning, PromptModel, as_prompt_model, tokens_with_room, whole_word
from ..near_words import CLOSE, LONGEST_FRAME, STOP_WORDS, nearest_words, neighbours_of_kept
from .registry import TrainingSettings, option

if TYPE_CHECKING:
    from ..trainer import Step, Trainer

Item = TypeVar("Item")
VOCABULARY_WORDS = 1000
"""Random words of the model's vocabulary that prompts are made of, beside the everyday ones."""
CLOSE_TO_CONCEPT = 40
"""So many words nearest to the concept's are never among the random ones: one may be another name of the concept."""
AT_ONCE = 8
"""Prompts that are encoded in one call where activations are computed again."""
NO_SPREAD = 1e-9
"""A share of the squares that is rounding."""
NEAR_EACH = 6
"""So many words near to each word of the prompts to keep are said half of the time: they are what suffers first."""


@dataclass(frozen=True)
class TextSpaceSettings(TrainingSettings):
    """Settings of methods that ask the text encoder beside the denoiser."""

    text_weight: float = option(4.0, "weight of keeping what the text encoder makes of many other prompts", 0.0, 1000.0)
    text_erase_weight: float = option(
        1.0, "weight of the text encoder reading the concept as its alternative", 0.0, 1000.0
    )
    text_prompts: int = option(16, "prompts that the text encoder is asked about in one step", low=1, high=1024)


@dataclass(frozen=True)
class Pair:
    """A prompt, and the prompt whose reading by the frozen text encoder it is to have."""

    prompt: str
    like: str


class Phrasing:
    """Makes pairs of prompts: kept ones as they are, and such with the concept and with what takes its place.

    With ``nothing`` set nothing takes the place of words that have no alternative; else these are in no pair.
    """

    def __init__(self, concept: Concept, words: Sequence[str], near: Sequence[str] = (), nothing: bool = False) -> None:
        self.concept = concept
        said = {word.casefold() for word in concept.words}
        self.words = [word for word in words if word.casefold() not in said]
        self.near_words = [word for word in near if word.casefold() not in said] or self.words
        own = [prompt for prompt in concept.keep if prompt and len(prompt) <= LONGEST_FRAME]
        self.kept = own or list(without_concept(PROMPTS, concept))
        self.near = [prompt for prompt in concept.neighbours if len(prompt) <= LONGEST_FRAME]
        bare = set() if nothing else {word for words in concept.unanswered() for word in words}
        self.answered = [word for word in concept.words if word not in bare]

    def kept_pair(self, chance: torch.Generator) -> Pair:
        """A prompt to keep, half of them with another word in one place, half of them beside another."""
        prompt = self._varied(_one(self.near if self.near and _sometimes(chance) else self.kept, chance), chance)
        if _sometimes(chance):
            prompt = f"{prompt} and {self._varied(_one(self.kept, chance), chance)}"
        return Pair(prompt, prompt)

    def concept_pair(self, chance: torch.Generator) -> Pair:
        """The concept alone or inside such a prompt, and the same with what takes its place."""
        word = _one(self.answered, chance)
        instead = dict(self.concept.instead).get(word, self.concept.alternative or "")
        if _index(4, chance) == 0:
            template = _one(TEMPLATES, chance)
            return Pair(worded(template, word), worded(template, word, instead))
        where = (IN_PLACE, BEFORE, BESIDE)[_index(3, chance)]
        room = frame(self._varied(_one(self.kept, chance), chance), where, _sometimes(chance), word, instead)
        pair = room.say(word), room.say(instead)
        if _sometimes(chance):
            first, second = _one(self.words, chance), _one(self.words, chance)
            pair = (f"{pair[0]}, {first} {second}", f"{pair[1]}, {first} {second}")
        return Pair(*pair)

    def _varied(self, prompt: str, chance: torch.Generator) -> str:
        """Half of the time with another word in the place of one that tells something."""
        parts = prompt.split()
        telling = [i for i, part in enumerate(parts) if part.casefold() not in STOP_WORDS]
        if telling and _sometimes(chance):
            words = self.near_words if _sometimes(chance) else self.words
            parts[_one(telling, chance)] = _one(words, chance)
        return " ".join(parts)


def _one(items: Sequence[Item], chance: torch.Generator) -> Item:
    return items[_index(len(items), chance)]


def _sometimes(chance: torch.Generator) -> bool:
    return _index(2, chance) == 0


def _index(count: int, chance: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=chance))


def phrasing_for(trainer: Trainer, model: PromptModel, nothing: bool = False) -> Phrasing:
    """The phrasing of a run: its words are everyday ones, random ones of the vocabulary, and such near what is kept."""
    chance = trainer.chance(700_000_001)
    size = len(model.token_tables()[0])
    found = []
    for token in torch.randint(size, (8 * VOCABULARY_WORDS,), generator=chance).tolist():
        word = whole_word(model, token)
        if word is not None:
            found.append(word)
        if len(found) == VOCABULARY_WORDS:
            break
    with trainer.deltas.off():  # a run that goes on must find the same words
        near = neighbours_of_kept(model, trainer.concept, NEAR_EACH)
    # Of a small vocabulary a small part: forty words would be most of what it can say.
    barred = min(CLOSE_TO_CONCEPT, max(CLOSE, size // 50))
    close = set(nearest_words(model, trainer.concept.words, barred))
    words = [word for word in dict.fromkeys([*everyday_words(), *found]) if word not in close]
    return Phrasing(trainer.concept, words, list(near), nothing)


def text_terms(step: Step, settings: TextSpaceSettings, nothing: bool = False) -> dict[str, Tensor]:
    """Two loss terms, weighted; none where no text encoder learns or its tokens cannot be read. The second, which reads
    the concept as its alternative, only where there is one, or where ``nothing`` is to take its place."""
    trainer, state, chance, count = step.trainer, step.state, step.generator, settings.text_prompts
    model = as_prompt_model(trainer.model)
    if not trainer.trains_text or model is None:
        return {}
    if state.phrasing is None:
        state.phrasing = phrasing_for(trainer, model, nothing)
    weights, asked = {}, {}
    if settings.text_weight:
        weights["text"], asked["text"] = settings.text_weight, [state.phrasing.kept_pair(chance) for _ in range(count)]
    if settings.text_erase_weight and (trainer.concept.has_alternative or nothing):
        name = "erased text"
        weights[name] = settings.text_erase_weight
        asked[name] = [state.phrasing.concept_pair(chance) for _ in range(count)]
    return {name: weights[name] * error for name, error in text_errors(trainer, model, asked).items()}


def text_errors(trainer: Trainer, model: PromptModel, asked: Mapping[str, Sequence[Pair]]) -> dict[str, Tensor]:
    """sum ||E(p) - E0(p')||^2 / sum ||E0(p') - mean E0||^2 over the tokens that prompts p and p' of pairs share, for
    each of several lists of pairs. One call of each encoder reads them all: on a GPU, calls cost more than prompts."""
    said_at_all = (text for pairs in asked.values() for pair in pairs for text in (pair.prompt, pair.like))
    tokens = tokens_with_room(model, said_at_all)
    usable = {name: [p for p in pairs if p.prompt in tokens and p.like in tokens] for name, pairs in asked.items()}
    together = [pair for pairs in usable.values() for pair in pairs]
    if not together:
        return {name: torch.zeros((), device=model.device) for name in asked}
    with torch.no_grad(), trainer.deltas.off():
        wanted = model.encode([pair.like for pair in together])
    said = _encoded(trainer, [pair.prompt for pair in together])
    errors, start = {}, 0
    for name, pairs in usable.items():
        rows = range(start, start + len(pairs))
        start = rows.stop
        errors[name] = (
            aligned_error(said[rows], wanted[rows], [(tokens[pair.prompt], tokens[pair.like]) for pair in pairs])
            if pairs
            else torch.zeros((), device=model.device)
        )
    return errors


def _encoded(trainer: Trainer, prompts: Sequence[str]) -> Conditioning:
    """Prompts as the text encoder in training reads them. Where the run computes activations again in the backward
    pass, so is it done here, in pieces: SDXL's large encoder would need a gigabyte for them."""
    encode: Any = trainer.model.encode
    if not trainer.settings.checkpointing:
        encoded: Conditioning = encode(prompts)
        return encoded
    pieces = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
    return Conditioning.cat([checkpoint(encode, piece, use_reentrant=False) for piece in pieces])


def aligned_error(said: Conditioning, wanted: Conditioning, tokens: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Relative squared error over those rows of two conditionings that stand for the same.

    Args:
        said: what is compared, B prompts.
        wanted: what it is compared to, B prompts.
        tokens: for each prompt the token ids of both, without begin and end: they tell which rows belong together.
    """
    length, device = said.context.shape[1], said.context.device
    ours, theirs = zip(*[_rows(*pair, length) for pair in tokens], strict=True)
    batch = torch.arange(len(tokens), device=device)[:, None]
    left = said.context[batch, torch.tensor(ours, device=device)].float()
    right = wanted.context[batch, torch.tensor(theirs, device=device)].float()
    error = _relative(left, right)
    if said.pooled is not None and wanted.pooled is not None and len(said) > 1:  # one alone has no spread
        error = error + _relative(said.pooled.float(), wanted.pooled.float())
    return error


def _relative(left: Tensor, right: Tensor) -> Tensor:
    """||left - right||^2 / ||right - its mean||^2; the mean is over all rows. Of rows that are all the same, which have
    no spread, nothing is asked."""
    spread = (right - right.flatten(0, -2).mean(dim=0)).square().sum()
    error = (left - right).square().sum() / spread.clamp_min(1e-12)
    return torch.where(spread > NO_SPREAD * right.square().sum(), error, torch.zeros_like(error))


def _rows(ours: list[int], theirs: list[int], length: int) -> tuple[list[int], list[int]]:
    """Places of rows that belong together in two prompts that differ in one stretch of tokens, [length] each.

    Begin and common start are at the same places; common end, end token and padding are counted from the end token, and
    so is the last token of the stretch, which says it whole. Rows left over repeat the begin token, which is the same
    in all prompts.
    """
    if ours == theirs:
        return list(range(length)), list(range(length))
    start = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    most = min(len(ours), len(theirs)) - start
    tail = next((i for i in range(most) if ours[-1 - i] != theirs[-1 - i]), most)
    last = len(ours) - tail, len(theirs) - tail  # of the stretch; begin is at 0, so token i is in row i + 1
    pairs = [(i, i) for i in range(start + 1)]
    first = max(0, start + 1 - min(last))
    pairs += [(last[0] + i, last[1] + i) for i in range(first, length - max(last))]
    pairs += [(0, 0)] * (length - len(pairs))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
