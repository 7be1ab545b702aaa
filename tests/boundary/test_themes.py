"""Both pages in a light and in a dark theme: every colour is told apart from what it stands on."""

from __future__ import annotations

import re

import pytest
from made_up import made_up

from erasure_core.boundary.drawing import AT_NIGHT, PALETTE, PAPER, SHADE, WARN, night_style
from erasure_core.boundary.map import map_svg
from erasure_core.boundary.map_page import map_page
from erasure_core.boundary.report_page import STYLE, chart

READ, SEEN = 4.5, 3.0
"""Contrast that texts and that shapes need (WCAG 2.2, AA)."""


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def themes(css: str) -> list[dict[str, str]]:
    """The variables of a page's style in a light and in a dark theme."""
    dark = r"@media \(prefers-color-scheme: dark\) \{ :root \{(.*?)\} ?\}"
    day = dict(re.findall(r"--(\w+): (#\w+)", re.sub(dark, "", css, flags=re.DOTALL)))
    nights = re.findall(dark, css, flags=re.DOTALL)
    night = dict(re.findall(r"--(\w+): (#\w+)", " ".join(nights)))
    assert day.keys() == night.keys(), "each colour is told for both"
    return [day, night]


@pytest.mark.parametrize("page", ["map", "report"])
def test_texts_are_read_in_both_themes(page: str) -> None:
    css = map_page(made_up(9)).partition("</style>")[0] if page == "map" else STYLE.read_text(encoding="utf-8")
    assert "color-scheme: light dark" in css
    for theme in themes(css):
        grounds = [theme[name] for name in ("paper", "soft", "warnsoft", "caresoft") if name in theme]
        for ground in grounds:
            assert contrast(theme["ink"], ground) > READ
        assert all(contrast(theme[name], theme["paper"]) > READ for name in ("dim", "warn", "accent"))
        assert contrast(theme["warn"], theme["warnsoft"]) > READ
        assert contrast(theme["paper"], theme["accent"]) > READ, "the chief button"


def test_drawings_are_seen_on_a_dark_page() -> None:
    """Their colours are written into them, for programs that read no styles; a page's style replaces each."""
    drawn = map_svg(made_up(60)) + chart("leak", [("a", [(0, 1), (1, 0)])], "strength").svg()
    night, paper = night_style(), AT_NIGHT[PAPER]
    texts = set(re.findall(r'<text [^>]*fill="(#\w+)"', drawn))
    shapes = set(re.findall(r'<circle [^>]*fill="(#\w+)"', drawn)) | set(PALETTE)
    assert len(texts) == 3 and len(shapes) == len(PALETTE)
    for colours, least in ((texts, READ), (shapes, SEEN)):
        for colour in colours:
            assert contrast(AT_NIGHT.get(colour, colour), paper) > least, colour
    assert contrast(AT_NIGHT[WARN], AT_NIGHT[SHADE]) > READ
    replaced = set(re.findall(r"#\w{6}", re.sub(r"\{ (fill|stroke): #\w+ \}", "", night)))
    assert {colour for colour in texts | shapes | {PAPER, SHADE} if colour in AT_NIGHT} <= replaced
    assert night.startswith("@media (prefers-color-scheme: dark) {"), "as the hosts' front ends replace it"


def test_origins_are_told_apart_in_both_themes() -> None:
    dark = [AT_NIGHT.get(colour, colour) for colour in PALETTE]
    assert len(set(dark)) == len(set(PALETTE)) == len(PALETTE)
    page = map_page(made_up(9))
    for theme, colours in zip(themes(page.partition("</style>")[0]), (PALETTE, dark), strict=True):
        assert [theme[f"c{i}"] for i in range(len(PALETTE))] == list(colours)
