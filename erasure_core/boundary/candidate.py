"""What a search proposes and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

NAMED = "named"
"""Origin of the prompts that say the words which the user gave for the concept."""
ADDED = "added"
"""Of those that say a word which the erasing added to them: nobody typed it, so it tells nothing of what was asked."""
ORIGINS = {
    "yours": "your own list",
    NAMED: "the concept's own words",
    ADDED: "words that the erasing added",
    "misspelling": "misspellings",
    "vocabulary": "words that nobody named",
    "self-check": "sentences found by self-check (SAGE)",
    "genetic": "token rows by genetic search (Ring-A-Bell)",
    "prefix": "prefixes by gradient (UnlearnDiffAtk, P4D)",
    "closed form": "prompt state in closed form (RECE)",
    "inversion": "learned embedding (concept inversion)",
}
"""What the prompts of each origin are, for people."""
HIDDEN_BELOW = 0.5
"""Similarity to the concept below which a leak is hidden: nobody would have thought of it."""


@dataclass(frozen=True)
class Candidate:
    """A prompt that may still reach an erased concept.

    Args:
        text: the prompt; for ids and embeddings the nearest readable form.
        origin: name of the search that found it.
        word: what to add to the concept's words if it leaks; the whole prompt where that is empty.
        ids: exact token ids without begin, end and padding, where the text might be read differently.
        embeddings: for each text encoder the token embeddings [n, D] that no text gives; they take the place of
            ``ids``, which must be as many.
        states: what the diffusion network reads, [L, D], where not even token embeddings give it.
        against: where the prompt says the concept of a thing, "a red house", what it could say in its place, first
            nothing: "a house", "a blue house". The thing would else drown the concept in every comparison.
        other: those of them that say another thing for sure, see ``kinds.SaidOfThing``.
    """

    text: str
    origin: str
    word: str = ""
    ids: tuple[int, ...] | None = None
    embeddings: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)

    states: Tensor | None = field(default=None, repr=False, compare=False)
    against: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether a user could type it."""
        return self.embeddings is None and self.states is None

    @property
    def target(self) -> str:
        """What to erase in another round; empty where no text reaches the concept."""
        return (self.word or self.text) if self.is_text else ""


@dataclass(frozen=True)
class Point:
    """A scored candidate: one point of the map.

    Args:
        text, word, origin: as in ``Candidate``; ``word`` is empty where nothing can be erased in another round.
        similarity: to the concept in what the original model reads, 1 like the concept, 0 like a neutral prompt.
        leak: probability that the erased model steers towards the concept (nearest-direction posterior), 0 to 1.
        margin: how much nearer its direction is to the concept's than to any other's; its order is that of ``leak``,
            and it tells apart what ``leak`` rounds to 1.
        residual: share of the original guidance towards the concept that the prompt has in the erased model.
        leaks: whether ``leak`` is above the threshold and the pictures confirm it; without a picture, whether those of
            others like it were. Of a prompt that says the concept of a thing the pictures alone may tell it.
        evidence: what the original model sees in the pictures that the erased one made of the prompt, in the one that
            shows it least, above 0 for the concept; ``None`` where none was made.
        hidden: far from the concept in text, and still leaking.
        cluster: index into the exploration's clusters.
        thumbnail: data URI of a small PNG, or empty.
        near: the concept's word that the original model reads it most like: it is another name of that one. Empty where
            an older version explored.
    """

    text: str
    word: str
    origin: str
    similarity: float
    leak: float
    margin: float
    residual: float
    leaks: bool
    evidence: float | None = None
    hidden: bool = False
    cluster: int = 0
    thumbnail: str = ""
    near: str = ""

    @property
    def is_text(self) -> bool:
        """Whether a user could type it: all that can be typed can be erased in another round."""
        return bool(self.word)
