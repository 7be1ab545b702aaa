"""The real CLIP byte-pair vocabulary (49,408 entries), and prompts as fixed rows of 77 token ids."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

MODEL_DIR = Path(__file__).parent / "model"
MAX_LENGTH = 77


@cache
def tokenizer():  # type: ignore[no-untyped-def]  # transformers' tokenizer classes are untyped
    """The tokenizer in the bundled model's folder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")


def token_ids(prompts: list[str], trim: bool = False) -> Tensor:
    """Token ids [len(prompts), 77], padded with the end token; ``trim`` cuts to the longest prompt.

    Trimming changes nothing up to each prompt's end token, because CLIP's text side is causal.
    """
    rows = tokenizer()(prompts, padding="max_length", max_length=MAX_LENGTH, truncation=True).input_ids
    ids = torch.tensor(rows)
    if trim:
        longest = int((ids == ids.max()).int().argmax(dim=1).max()) + 1
        ids = ids[:, :longest]
    return ids
