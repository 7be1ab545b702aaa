"""The pages in the tab's frames: they follow the web UI's theme."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "boundary"))

from made_up import made_up

from erasure_core.boundary.map_page import map_page
from erasure_core.boundary.report_page import STYLE

SCRIPT = Path(__file__).parents[2] / "javascript" / "concept_erasure.js"
REPORT = (
    f"<html><head><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><h1>Report card</h1></body></html>"
)
DARK, LIGHT = "rgb(21, 24, 31)", "rgb(255, 255, 255)"


def test_the_script_asks_for_what_the_pages_say() -> None:
    """Without a browser: it finds the frames, and in them the words that it replaces."""
    script = SCRIPT.read_text(encoding="utf-8")
    asked = "(prefers-color-scheme: dark)"
    assert f"'{asked}'" in script and "onUiUpdate(concept_erasure_follow_theme)" in script
    for page in (REPORT, map_page(made_up(9))):
        assert f"@media {asked} {{" in page and page.count("</head>") == 1
    assert "iframe.concept-erasure-page:" in script


def test_pages_follow_the_web_uis_theme_and_not_the_browsers(
    a1111: SimpleNamespace, library: Path, tmp_path: Path
) -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.environ.get("PLAYWRIGHT_CORE") or not Path(chromium).exists() or shutil.which("node") is None:
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")
    pages = importlib.import_module("concept_erasure_webui.pages")
    shown = {"map": pages.map_frame(made_up(30)), "report": pages.report_frame(REPORT, "{}")}
    assert all('class="concept-erasure-page"' in frame for frame in shown.values())
    for name, frame in shown.items():
        (tmp_path / name).write_text(frame, encoding="utf-8")
    command = ["node", str(Path(__file__).with_name("frames.mjs")), str(SCRIPT)]
    command += [str(tmp_path / name) for name in shown]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    for browsers in ("dark", "light"):
        assert [paper for paper, _ in seen[f"dark in {browsers}"]] == [DARK, DARK]
        assert [paper for paper, _ in seen[f"light in {browsers}"]] == [LIGHT, LIGHT]
    assert [scheme for _, scheme in seen["dark in light"]] == ["dark", "dark"], "of the browser's own parts too"
