"""Whole rows of token ids, as CLIP's text encoders read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import PromptTooLong

LENGTH = 77
"""Ids in a row of CLIP's text encoders, begin and end among them."""
SHOWN = 60
"""Characters of a prompt that a sentence shows."""


class Marks(NamedTuple):
    """The ids that a text encoder wants around a prompt's own."""

    begin: int
    end: int
    padding: int


def framed(
    rows: Sequence[Sequence[int]], marks: Marks, text_of: Callable[[Sequence[int]], str], length: int = LENGTH
) -> Tensor:
    """Ids [B, length] with begin, end and padding around each row.

    Args:
        rows: each prompt's own ids.
        marks: what goes around them.
        text_of: what ids stand for, to name a prompt by.
        length: of a whole row.

    Raises:
        PromptTooLong: a row would be cut.
    """
    whole = torch.full((len(rows), length), marks.padding, dtype=torch.long)
    for place, row in enumerate(rows):
        if len(row) + 2 > length:
            raise PromptTooLong(
                f"The prompt {text_of(row)[:SHOWN]!r}… has {len(row)} tokens, but only {length - 2} are read. "
                "Shorten it."
            )
        whole[place, : len(row) + 2] = torch.tensor([marks.begin, *row, marks.end])
    return whole


def ends_of(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The place of each row's end token in ``framed``."""
    return tuple(len(row) + 1 for row in rows)
