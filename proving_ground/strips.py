"""A picture of all methods side by side: what each paints for the same prompts and seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from erasure_core import applied

from .bench import UNTOUCHED, Cell, erasure_of
from .evaluation import Question, questions
from .lexicon import CONCEPTS
from .painting import load_model, paint
from .scene import SIZE
from .variants import ROWS

GROUPS = (
    "named", "named", "unnamed", "unnamed", "descriptions", "descriptions",
    "look-alikes", "kept", "kept", "attributes", "two objects",
)  # fmt: skip
SCALE, GAP = 2, 6
NAME, HEAD = 230, 96
"""Pixels for the methods' names, and for the prompts."""
LETTERS = 19
"""Of a prompt in one line above its pictures."""


def asked(concept: str) -> list[tuple[str, Question]]:
    """A prompt of the benchmark for each column, with its group; groups that the concept lacks are left out."""
    columns = []
    for place, group in enumerate(GROUPS):
        found = questions(CONCEPTS[concept], group, len(GROUPS))
        columns += [(group, found[place])] if found else []
    return columns


def rows(concept: str, methods: Sequence[str], columns: Sequence[Question]) -> Iterator[tuple[str, Tensor]]:
    """Each method's name with its pictures, the untouched model's first."""
    model, prompts, seeds = load_model(), [column.prompt for column in columns], range(len(columns))
    yield UNTOUCHED, paint(model, prompts, seeds)
    for method in methods:
        print(f"{method} …", flush=True)
        with applied(model, [(erasure_of(Cell(method, concept, 0), model), 1.0)]):
            yield method, paint(model, prompts, seeds)


def sheet(columns: Sequence[tuple[str, Question]], painted: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """The picture: a row for each method, a column for each prompt."""
    side = SCALE * SIZE
    font, bold = ImageFont.load_default(12), ImageFont.load_default(14)
    image = Image.new("RGB", (NAME + len(columns) * (side + GAP), HEAD + len(painted) * (side + GAP)), "white")
    draw = ImageDraw.Draw(image)
    for place, (group, question) in enumerate(columns):
        left = NAME + place * (side + GAP)
        draw.text((left, 6), group, fill="black", font=bold)
        draw.multiline_text((left, 26), textwrap.fill(question.prompt, LETTERS), fill="#555555", font=font, spacing=1)
    for row, (name, pictures) in enumerate(painted):
        top = HEAD + row * (side + GAP)
        draw.text((8, top + side // 2 - 8), name, fill="black", font=bold)
        for place, picture in enumerate(pictures):
            one = Image.fromarray(picture.permute(1, 2, 0).numpy())
            image.paste(one.resize((side, side), Image.Resampling.LANCZOS), (NAME + place * (side + GAP), top))
    return image


def write_strips(concept: str, out: Path, methods: Sequence[str] = tuple(ROWS)) -> None:
    """Erase a concept by every method, or take what the benchmark left, and write what each paints."""
    columns = asked(concept)
    with torch.no_grad():
        image = sheet(columns, list(rows(concept, methods, [question for _, question in columns])))
    image.quantize(256).save(out, optimize=True)
