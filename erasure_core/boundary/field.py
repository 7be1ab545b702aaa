"""What a search gets to see. All searches have one signature: a field in, batches of candidates out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concept import Concept
from .aim import COST, Aim, take_aim
from .candidate import Candidate
from .reading import Reading
from .scores import Scorer
from .subject import Subject, derived


@dataclass
class Field:
    """Where to search.

    Args:
        subject: the opened model, its erasures on.
        concept: what to find.
        reading: compares prompts without the diffusion network.
        scorer: scores candidates.
        tries: prompts that the user asks to try.
        seed: of all chance.
        until: share of the budget at which this search ends.
        words_read: tokens that the scan of the vocabulary has read, and of how many.
    """

    subject: Subject
    concept: Concept
    reading: Reading
    scorer: Scorer
    tries: Sequence[str] = ()
    seed: int = 0
    until: float = 1.0
    words_read: tuple[int, int] = (0, 0)
    _aim: Aim | None = None

    def over(self) -> bool:
        """Whether this search has to end: its share is used up or the user stopped. Asked before each costly call."""
        return self.subject.stopped(self.until)

    def aim(self) -> Aim | None:
        """What the gradient searches steer towards, made once for all of them; ``None`` where this search's share does
        not suffice for it."""
        if self._aim is None and self.subject.affordable(1, COST, self.until):
            self._aim = take_aim(self.subject, self.concept.words, self.seed)
        return self._aim

    def chance(self, number: int = 0) -> torch.Generator:
        """A generator on the CPU, so that every device finds the same."""
        return torch.Generator().manual_seed(derived(self.seed, number))

    def own_tokens(self) -> set[int]:
        """The tokens that are a word of the concept, which a search for unnamed words must not use.

        Of words that have several tokens none is forbidden, since each of them may begin other words.
        """
        words = [spelled for word in self.concept.words for spelled in (word, word.capitalize())]
        return {row[0] for row in self.subject.model.tokenize(words) if len(row) == 1}

    def names(self, text: str) -> bool:
        """Whether a text holds one of the concept's words. Plurals are others: they may leak on their own."""
        folded = text.casefold()
        return any(re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", folded) for word in self.concept.words)

    def vocabulary(self) -> Tensor:
        """The token ids that searches may use: all but the concept's own and those of an empty prompt, which are begin,
        end and padding."""
        (ids, *_), _ = self.subject.model.token_rows([[]])
        barred = self.own_tokens() | set(ids[0].tolist())
        return torch.tensor([token for token in range(len(self.subject.tables[0])) if token not in barred])

    def retold(self, ids: Sequence[int], origin: str) -> Candidate | None:
        """A found row of tokens as a prompt that a user could type, or ``None`` where it reads as something else:
        as too long, as nothing, as what no keyboard types, or with the concept's own words in it."""
        text = self.subject.model.detokenize(ids)
        row = self.subject.model.tokenize([text])[0] if text else []
        if not row or not text.isprintable() or not self.subject.fits(row) or self.names(text):
            return None
        return Candidate(text, origin)


Search = Callable[[Field], Iterator[list[Candidate]]]
