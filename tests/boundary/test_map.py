"""The map: static forms, the page's own safety, and the page in a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from made_up import HOSTILE, made_up
from PIL import ImageFont

from erasure_core.boundary import Exploration
from erasure_core.boundary.drawing import Sheet
from erasure_core.boundary.map import SUMMARY_WIDTH, map_picture, map_sheet, map_svg, place_of, write_map
from erasure_core.boundary.map_page import embedded, map_page
from erasure_core.boundary.thumbnails import picture_uri

HERE = Path(__file__).parent


def test_static_maps_show_every_point() -> None:
    found = made_up()
    drawing = ElementTree.fromstring(map_svg(found))
    circles = drawing.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(found.points) + len({point.origin for point in found.points})
    picture = map_picture(found)
    assert picture.size == (900, 620) and len(set(picture.resize((90, 62)).getdata())) > 20


def test_what_pictures_refuted_is_hollow() -> None:
    """It is above the line all the same."""
    leak = replace(made_up(10).points[-1], leak=0.9, leaks=True)
    found = replace(made_up(10), points=(leak, replace(leak, leaks=False, evidence=-1.0)))
    circles = ElementTree.fromstring(map_svg(found)).findall("{http://www.w3.org/2000/svg}circle")
    assert [one.get("fill") == "none" for one in circles] == [True, False, False]  # drawn first; the last is the legend
    filled, hollow = (map_picture(replace(found, points=(point,))) for point in found.points)
    middle = tuple(map(round, place_of(leak)))
    assert sum(hollow.getpixel(middle)) > sum(filled.getpixel(middle)) + 100  # type: ignore[arg-type]
    assert "pictures do not confirm it" in map_svg(found) and "Hollow ones were suspected" in map_page(found)


def test_an_old_pillow_draws_quotes_and_words_that_its_font_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 10.1 there is one bitmap font of Latin-1 letters, and no argument for a size."""
    monkeypatch.setattr(ImageFont, "load_default", lambda: ImageFont.load_default_imagefont())
    for text, anchor in (("“犬” é", "start"), ("“ball”", "middle"), ("ball", "end"), ("", "start")):
        sheet = Sheet(300, 60)
        sheet.text((150, 40), text, 16, anchor=anchor)
        dark = sheet.picture().convert("L").point(lambda value: 255 * (value < 128)).getbbox()
        if not text:
            assert dark is None
            continue
        assert dark is not None
        left, top, right, bottom = dark
        assert 26 <= top < bottom <= 46  # it stands on its line
        assert {"start": left >= 149, "middle": left < 150 < right, "end": right <= 151}[anchor]


def test_hostile_texts_stay_text() -> None:
    found = made_up()
    page, svg = map_page(found), map_svg(found)
    for text in HOSTILE[:2]:
        assert text not in page and text not in svg
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    content = json.loads(data[1])
    assert {row[0] for row in content["points"]} >= set(HOSTILE) and page.count("<script") == 2
    assert "default-src 'none'" in page and "http" not in re.sub(r"http-equiv", "", page)


def test_what_is_embedded_closes_nothing() -> None:
    value = ["</script>", "<!--", "\u2028", "&amp;", 'quote " and \\']
    assert json.loads(embedded(value)) == value and not set("<>&\u2028") & set(embedded(value))


def test_writes_all_files(tmp_path: Path) -> None:
    found = made_up(60)
    paths = write_map(found, tmp_path)
    assert {path.name for path in paths} == {"map.html", "map.svg", "map.png", "exploration.json", "leaking.txt"}
    assert Exploration.from_json((tmp_path / "exploration.json").read_text(encoding="utf-8")) == found
    lines = (tmp_path / "leaking.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [" ".join(word.split()) for word in found.leaking_words(10_000)]


def _browse(page: Path, picture: Path) -> dict[str, object]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    if not shutil.which("node") or not Path(chromium).exists() or not os.environ.get("PLAYWRIGHT_CORE"):
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")
    command = ["node", str(HERE / "browse.mjs"), str(page), str(picture)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr
    seen: dict[str, object] = json.loads(ran.stdout)
    return seen


FELT_AT_ONCE = 100
"""Milliseconds up to which an answer is felt to be immediate (Miller 1968). A desktop takes 17, one frame, for a hover
and 30 for a filter; what is left is for slow machines that do other things meanwhile, as is the median."""
ELSEWHERE = "https://example.invalid/picture.png"


def _with_pictures(found: Exploration) -> Exploration:
    """All that leak have a picture; of the worst one a stranger has written that it lies on the net."""
    place = torch.arange(64) // 8 % 2
    picture = picture_uri((255 * (place[:, None] ^ place)).to(torch.uint8).expand(3, -1, -1), found.explicit)
    points = [replace(point, thumbnail=picture if point.leaks else "") for point in found.points]
    return replace(found, points=(replace(points[0], thumbnail=ELSEWHERE), *points[1:]))


@pytest.mark.parametrize(("count", "explicit"), [(5000, False), (300, True)])
def test_page_in_a_real_browser(tmp_path: Path, count: int, explicit: bool) -> None:
    found = _with_pictures(made_up(count, explicit=explicit))
    (tmp_path / "map.html").write_text(map_page(found), encoding="utf-8")
    seen = _browse(tmp_path / "map.html", tmp_path / "map.png")
    assert seen["problems"] == [] and seen["requests"] == [] and seen["broken"] is True
    assert seen["start"] == count
    assert "steers to the concept" in str(seen["tip"])
    assert seen["withoutVocabulary"] == sum(point.origin != "vocabulary" for point in found.points)
    leaking = len(found.leaking)
    assert seen["leaking"] == seen["selected"] == leaking and seen["cleared"] == 0 and seen["dragged"] == leaking
    assert seen["found"] == sum(point.leaks and "word1" in point.text for point in found.points)
    words = {" ".join(point.word.split()) for point in found.leaking if point.word}
    assert {" ".join(line.split()) for line in seen["exported"]} == words  # type: ignore[attr-defined]
    pictured = {point.text: point.thumbnail for point in found.leaking}
    shown: Any = seen["pictures"]
    assert len(shown) > 0.8 * leaking, "some lie under others"
    assert all(one["src"] == (pictured[text] if pictured[text] != ELSEWHERE else None) for text, one in shown.items())
    assert {one["alt"] for one in shown.values()} == {f"picture of this prompt{', blurred' * explicit}", None}
    assert seen["hovered"] == 64, "as wide as it is"
    hover, filtered = seen["hover"], seen["filter"]
    assert isinstance(hover, dict) and isinstance(filtered, dict)
    assert hover["most"] == 1 and filtered["most"] == count, "a hover paints no point anew"
    assert hover["middle"] < FELT_AT_ONCE and filtered["middle"] < 2 * FELT_AT_ONCE


def test_labels_leave_each_other_and_the_legend_alone() -> None:
    """Long words near the edge, and many of them close together."""
    some = [replace(point, leaks=True, leak=0.99) for point in made_up(60).points if point.word]
    word = "a very long word that nobody types"
    near = [replace(point, word=word, similarity=0.7 + 0.005 * i) for i, point in enumerate(some)]
    found = replace(made_up(), points=tuple(near))
    texts = [shape for shape in map_sheet(found).shapes if shape.kind == "text" and shape.size == 11]
    labels = [shape for shape in texts if shape.text.startswith("a very long")]
    assert 0 < len(labels) <= 10 and all(len(shape.text) <= 26 for shape in labels)
    for one, other in combinations(labels, 2):
        (x, y), (other_x, other_y) = one.places[0], other.places[0]
        assert abs(y - other_y) > 13 or abs(x - other_x) > 100


def test_the_summary_is_told_whole_words_in_two_lines() -> None:
    long = replace(made_up(), words=(" ".join(["long"] * 30), "ball"))
    for found, is_cut in ((made_up(), False), (long, True)):
        summary = found.summary()
        texts = [shape.text for shape in map_sheet(found).shapes if shape.kind == "text"]
        first, second = [text for text in texts if len(text) > 80 and text.removesuffix(" …") in summary]
        assert len(first) <= SUMMARY_WIDTH and len(second) <= SUMMARY_WIDTH
        assert f"{summary} ".startswith(f"{first} {second.removesuffix(' …')} ") and second.endswith(" …") is is_cut
