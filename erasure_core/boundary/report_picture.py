"""The report card as one picture: verdict, curves, and same-seed pictures before and after."""

from __future__ import annotations

import base64
import io
import textwrap

from PIL import Image

from .drawing import DIM, INK, PAPER, WARN, Sheet
from .report_card import STRIP_SIDE, ReportCard, Strip
from .report_page import charts

WIDTH = 900
MARGIN = 20
LETTERS = 120
"""Of the text's size that fit into the width."""
LABEL = 250
"""Width of the prompts beside the pictures."""


def report_picture(card: ReportCard) -> Image.Image:
    """An RGB picture, 900 wide and as high as its content."""
    parts = [_text(card), _curves(card), *([_strips(card)] if card.strips else [])]
    whole = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _text(card: ReportCard) -> Image.Image:
    rows: list[tuple[str, float, str]] = [(f"Report card: {', '.join(card.words)}"[:90], 19, INK)]
    for file in card.files:
        rows.append((f"{file.name}, strength {file.strength:g}"[:LETTERS], 13.5, INK))
        rows += [(line, 13, INK) for said in file.verdict for line in _wrapped(said)]
    if card.not_painted:
        rows += [(line, 12, DIM) for line in _wrapped(card.not_painted)]
    rows.append(("What this does not say", 13.5, WARN))
    rows += [(line, 12, DIM) for limit in card.limits for line in _wrapped(limit)]
    sheet = Sheet(WIDTH, MARGIN + 21 * len(rows) + 16)
    sheet.rect((0, 0), (WIDTH, sheet.height), PAPER)
    for row, (text, size, colour) in enumerate(rows):
        sheet.text((MARGIN, MARGIN + 16 + 21 * row), text, size, colour)
    return sheet.picture()


def _wrapped(sentence: str) -> list[str]:
    lines = textwrap.wrap(sentence, LETTERS) or [""]
    return [f"· {lines[0]}", *(f"  {line}" for line in lines[1:])]


def _curves(card: ReportCard) -> Image.Image:
    drawn = [sheet.picture() for sheet in charts(card)]
    row = Image.new("RGB", (WIDTH, max(picture.height for picture in drawn)), PAPER)
    for number, picture in enumerate(drawn):
        row.paste(picture, (MARGIN // 2 + number * (WIDTH // 2), 0))
    return row


def _strips(card: ReportCard) -> Image.Image:
    """One row of pictures for each prompt: the untouched model's first, then each file's."""
    columns = ["untouched", *(file.name for file in card.files)]
    step = min(STRIP_SIDE + 12, (WIDTH - LABEL - MARGIN) // len(columns))
    sheet = Sheet(WIDTH, 34 + (STRIP_SIDE + 12) * len(card.strips) + MARGIN)
    sheet.rect((0, 0), (WIDTH, sheet.height), PAPER)
    sheet.text((MARGIN, 20), "Same seed", 13.5)
    for number, name in enumerate(columns):
        sheet.text((LABEL + step * number, 20), name[: step // 7], 11.5, DIM)
    for row, strip in enumerate(card.strips):
        _label(sheet, strip, 34 + (STRIP_SIDE + 12) * row)
    picture = sheet.picture()
    for row, strip in enumerate(card.strips):
        for number, uri in enumerate(strip.pictures):
            picture.paste(_opened(uri, step - 8), (LABEL + step * number, 34 + (STRIP_SIDE + 12) * row))
    return picture


def _label(sheet: Sheet, strip: Strip, top: float) -> None:
    for number, line in enumerate(textwrap.wrap(strip.prompt, 32)[:4]):
        sheet.text((MARGIN, top + 20 + 17 * number), line, 12.5)
    sheet.text((MARGIN, top + 100), strip.kind, 11.5, WARN if strip.kind == "erased" else DIM)


def _opened(uri: str, side: int) -> Image.Image:
    content = base64.b64decode(uri.partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        shown: Image.Image = picture.convert("RGB")
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    return shown
