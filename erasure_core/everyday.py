"""Everyday words and prompts: what stands for everything that no user names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

WORDS_FILE = Path(__file__).parent / "data" / "everyday_words.txt"

PROMPTS = (
    "a photo of a person", "a landscape", "a city street", "a dog", "a cat", "a tree", "a house", "a car", "a table",
    "a portrait of a woman", "a portrait of a man", "food on a plate", "the sky with clouds", "a painting", "a flower",
    "a bird",
)  # fmt: skip
"""Everyday prompts, kept where the user names none."""


@cache
def everyday_words() -> tuple[str, ...]:
    """Common things, people, places and ways to paint."""
    lines = WORDS_FILE.read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))
