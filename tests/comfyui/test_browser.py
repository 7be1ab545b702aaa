"""The front end in a real browser on a real ComfyUI. Skipped where COMFYUI_PATH or PLAYWRIGHT_CORE names none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comfy_client import Graphs, Host
from pack_nodes import WIDGETS

ROOT = Path(__file__).parent.parent.parent
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
FAST = {
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 3},
    "Erase": {
        "resolution": 64,
        "steps": 6,
        "trajectories": 5,
        "trajectory_steps": 3,
        "batch": 1,
        "preview_every": 3,
        "harden_seconds": 10,
        "candidates": 4,
        "check_starts": 2,
        "check_steps": 2,
        "text_prompts": 2,
    },
    "ConceptErasureExplore": {"resolution": 64, "seconds": 10, "states": 2, "look": 2},
    "ConceptErasureReport": {"resolution": 64, "seconds": 10, "states": 2},
}


@pytest.fixture(scope="module")
def browse(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Any:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.environ.get("PLAYWRIGHT_CORE") or not Path(chromium).exists() or shutil.which("node") is None:
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")

    def run(job: str, **task: Any) -> dict[str, Any]:
        failure = str(tmp_path_factory.mktemp("browser") / "failure.png")
        text = json.dumps({"url": f"http://127.0.0.1:{host.port}", "job": job, "failure": failure, **task})
        script = str(Path(__file__).with_name("browser.mjs"))
        done = subprocess.run(["node", script, text], capture_output=True, text=True, timeout=4000)
        seen: dict[str, Any] = json.loads(done.stdout or json.dumps({"error": done.stderr}))
        assert "error" not in seen, (seen, failure)
        return seen

    return run


@pytest.fixture(scope="module")
def graphs(host: Host) -> Graphs:
    return Graphs(host)


@pytest.fixture(scope="module")
def file(host: Host, graphs: Graphs) -> str:
    """An instant erasure, also under the names that the example workflows hold."""
    made = host.run({**graphs.paint("erase"), **graphs.erase("closed_form")})["erase"]["erasure"][0]["file"]
    folder = host.base / "models/erasures"
    for name in ("first.safetensors", "second.safetensors"):
        shutil.copy(folder / made, folder / name)
    return str(made)


def small(path: Path, graphs: Graphs) -> dict[str, Any]:
    """An example workflow on the twin, at its size and with few steps."""
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "Note":  # the front end's own
            continue
        spec = graphs.known[node["type"]]["input"]
        fields = [
            name
            for name, (kind, *_) in {**spec.get("required", {}), **spec.get("optional", {})}.items()
            if isinstance(kind, list) or kind in WIDGETS
        ]
        wanted = FAST.get(node["type"], FAST["Erase"] if "Erase_" in node["type"] else {})
        wanted = {**wanted, **({"ckpt_name": "twin.safetensors"} if node["type"] == "CheckpointLoaderSimple" else {})}
        for name, value in wanted.items():
            if name in fields:
                place = fields.index(name)
                node["widgets_values"][place + (node["type"] == "KSampler" and place > 0)] = value
    return workflow


def pictures_of(host: Host) -> set[Path]:
    return set((host.base / "output").rglob("*.png"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_run(browse: Any, host: Host, graphs: Graphs, file: str, path: Path) -> None:
    painted = pictures_of(host)
    seen = browse("workflow", workflow=small(path, graphs))
    assert seen["ended"] == "execution_success" and seen["problems"] == []
    if path.stem in ("erase_with_combined", "erase_and_compare"):
        assert seen["lines"] >= 2 and "erase" in seen["charts"][0] and "6 / 6" in seen["charts"][0]
    if path.stem == "safety_profile":
        assert pictures_of(host) == painted, "the first run only saves the profile"
        seen = browse("workflow", workflow=small(path, graphs))
        assert seen["ended"] == "execution_success" and pictures_of(host) > painted
    if path.stem in ("apply_a_stack", "safety_profile"):
        assert all("ball" in badge and "sd1" in badge for badge in seen["badges"]) and seen["badges"]


def test_a_file_that_is_used_again_says_so(browse: Any, host: Host, graphs: Graphs, file: str) -> None:
    workflow = small(ROOT / "example_workflows/instant_erase.json", graphs)
    first = browse("workflow", workflow=workflow)
    host.run(graphs.paint(seed=3))  # another graph in between: the host forgets what the first put out, and runs it
    again = browse("workflow", workflow=workflow)
    assert first["ended"] == again["ended"] == "execution_success"
    assert any("used again" in toast for toast in again["toasts"])


def test_what_stops_a_graph_is_a_toast(browse: Any, graphs: Graphs, file: str, host: Host) -> None:
    workflow = small(ROOT / "example_workflows/apply_a_stack.json", graphs)
    folder = host.base / "models/erasures"
    whole = (folder / "second.safetensors").read_bytes()
    (folder / "second.safetensors").write_bytes(whole[:300])
    try:
        seen = browse("workflow", workflow=workflow)
    finally:
        (folder / "second.safetensors").write_bytes(whole)
    assert seen["ended"] == "execution_error"
    assert any("Concept Erasure stopped the graph" in toast for toast in seen["toasts"])
    assert any("cannot be used" in badge for badge in seen["badges"])


LOOKS = pytest.mark.parametrize(
    "look", [{"Comfy.ColorPalette": "light"}, {"Comfy.VueNodes.Enabled": True}], ids=["light", "vue"]
)


def check_look(seen: dict[str, Any], look: dict[str, Any], workflow: dict[str, Any]) -> None:
    """Whether the nodes are drawn as asked; skips where the front end shows no pack's elements on such nodes."""
    assert seen["problems"] == []
    assert seen["vue"] == (len(workflow["nodes"]) if look.get("Comfy.VueNodes.Enabled") else 0)
    if not seen["elements"]:
        pytest.skip("this front end shows no elements of any pack on such nodes")


@LOOKS
def test_chart_in_every_look(browse: Any, graphs: Graphs, file: str, look: dict[str, Any]) -> None:
    workflow = small(ROOT / "example_workflows/erase_and_compare.json", graphs)
    seen = browse("workflow", workflow=workflow, settings=look)
    assert seen["ended"] == "execution_success"
    check_look(seen, look, workflow)
    assert seen["charts"]


@LOOKS
def test_badge_in_every_look(browse: Any, graphs: Graphs, file: str, look: dict[str, Any]) -> None:
    workflow = small(ROOT / "example_workflows/apply_a_stack.json", graphs)
    seen = browse("workflow", workflow=workflow, run=False, settings=look)
    check_look(seen, look, workflow)
    assert len(seen["badges"]) == 2 and all("ball" in badge for badge in seen["badges"])


def test_what_only_the_server_puts_into_graphs_is_not_offered(browse: Any, graphs: Graphs) -> None:
    internal = {"ConceptErasureRefused", "ConceptErasureServerProfile"}
    ours = {name for name in graphs.known if name.startswith("ConceptErasure")}
    assert internal < ours and set(browse("addable")["types"]) == ours - internal


def test_rare_settings_are_folded_away(browse: Any, graphs: Graphs) -> None:
    kind = "ConceptErasureErase_auto"
    seen = browse("fold", kind=kind)
    folded, unfolded = seen["folded"], seen["unfolded"]
    assert folded["height"] < 900 < unfolded["height"] and folded["shown"] + 30 < unfolded["shown"]
    assert folded["label"].startswith("More settings") and unfolded["label"].startswith("Fewer settings")
    assert seen["again"] == folded and seen["problems"] == []
    inputs = {name: spec for part in graphs.known[kind]["input"].values() for name, spec in part.items()}
    count = sum(isinstance(spec[0], list) or spec[0] in WIDGETS for spec in inputs.values())
    # Workflows store values by position: what this pack adds to a node comes last and has none.
    assert None not in seen["values"][:count] and not any(seen["values"][count:])


def test_the_pack_speaks_other_languages(browse: Any, graphs: Graphs, file: str) -> None:
    """Japanese: newer front ends have no German to choose."""
    workflow = small(ROOT / "example_workflows/apply_a_stack.json", graphs)
    seen = browse("workflow", workflow=workflow, run=False, settings={"Comfy.Locale": "ja"})
    assert seen["badges"]
    for badge in seen["badges"]:
        assert "手法: " in badge and "ベース: " in badge and "測定値: まだ測定されていません" in badge
        assert "method: " not in badge and "base: " not in badge and "measured: " not in badge
