"""The map and the report card inside their nodes, in a real browser with stand-ins for the host's modules."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from erasure_core.boundary.map_page import map_page
from erasure_core.boundary.report_page import STYLE

ROOT = Path(__file__).parent.parent.parent
REPORT = f"""<!doctype html><html><head><style>{STYLE.read_text(encoding="utf-8")}</style></head>
<body><h1>Report card: ball</h1><script>document.title = 'ran'</script></body></html>"""


def made_up(count: int) -> Any:
    """The exploration that the tests of the map use."""
    spec = importlib.util.spec_from_file_location("made_up", ROOT / "tests" / "boundary" / "made_up.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_up"] = module
    spec.loader.exec_module(module)
    return module.made_up(count)


@pytest.mark.parametrize("dark", [True, False], ids=["dark", "light"])
def test_what_is_selected_on_the_map_is_written_into_the_node(tmp_path: Path, dark: bool) -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.environ.get("PLAYWRIGHT_CORE") or not Path(chromium).exists() or shutil.which("node") is None:
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")
    found = made_up(300)
    (tmp_path / "map.html").write_text(map_page(found), encoding="utf-8")
    (tmp_path / "report.html").write_text(REPORT, encoding="utf-8")
    task = {"web": str(ROOT / "web"), "dark": dark, "picture": os.environ.get("PICTURE", "")}
    task |= {name: str(tmp_path / f"{name}.html") for name in ("map", "report")}
    command = ["node", str(Path(__file__).with_name("pages.mjs")), json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    seen = json.loads(done.stdout or json.dumps({"error": done.stderr}))
    assert "error" not in seen, seen
    assert seen["restored"] == "typed by hand\nword7"
    leaking = {" ".join(point.word.split()) for point in found.points if point.leaks and point.word}
    assert set(seen["selected"]) == {"typed by hand", "word7"} | leaking and seen["called"]
    assert seen["cleared"] == seen["forged"] == "typed by hand"
    assert seen["reaches"] is False and seen["elsewhere"] == []
    assert seen["paper"] == seen["reportPaper"] == ("rgb(21, 24, 31)" if dark else "rgb(255, 255, 255)")
    assert seen["report"] == "Report card: ball"
    # A report runs no scripts; the browser says so, and nothing else is wrong.
    assert all("Blocked script execution" in problem for problem in seen["problems"]), seen["problems"]
