"""Makes the pictures of the nodes on their help pages, in a real ComfyUI: python -m tools.node_pictures

For developers. COMFYUI_PATH, COMFYUI_PYTHON and PLAYWRIGHT_CORE name what the tests in a real host use as well. Every
node is shown as it is added to a graph; where a node shows a result, it has one of the proving ground's model.

Writes web/docs/pictures/*.jpg, and beside this file what of each node they show. A test compares that with the nodes as
they are, so whoever changes a node's inputs or a method's settings runs it once.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SHOWN = Path(__file__).with_suffix(".json")
COMMAND = "python -m tools.node_pictures"
INTERNAL = ("ConceptErasureRefused", "ConceptErasureServerProfile")
"""Only the server puts these into graphs: no pictures."""
LOOK = {"Comfy.NodeBadge.NodeSourceBadgeMode": "None", "Comfy.Locale": "en", "Comfy.ColorPalette": "dark"}
SIZE = {"width": 1500, "height": 1500}
"""Of the browser's window; the tallest node must fit."""


def shown(schemas: dict[str, Any]) -> dict[str, Any]:
    """What can be seen of each node while its rare settings are folded away: inputs with their defaults, in order."""
    found = {}
    for node_id, schema in schemas.items():
        folded = [each for each in schema.inputs if each.extra_dict.get("advanced")]
        found[node_id] = {
            "title": schema.display_name,
            "inputs": [[each.id, each.default] for each in schema.inputs if each not in folded],
            "folded": len(folded),
            "outputs": [each.display_name for each in schema.outputs],
        }
    return {node_id: found[node_id] for node_id in sorted(found) if node_id not in INTERNAL}


def text(found: dict[str, Any]) -> str:
    """As it is written: one line for each node."""
    rows = [f" {json.dumps(node_id)}: {json.dumps(one, ensure_ascii=False)}" for node_id, one in found.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def results(host: Any) -> dict[str, Any]:
    """What nodes tell the browser when they have run, by node type; leaves a file and a profile in the lists."""
    from comfy_client import Graphs

    graphs = Graphs(host)
    links = {"model": ["base", 0], "clip": ["base", 1], "concept": ["concept", 0], "erasure": ["erase", 2]}
    quick = {**links, "vae": ["base", 2], "seconds": 10, "states": 2, "resolution": 64}
    graph = {
        "base": graphs.paint()["base"],
        **graphs.erase("closed_form"),
        "inspect": graphs.node("Inspect", erasure=["erase", 2]),
        "save": graphs.node("Save", erasure=["erase", 2]),
        "keep": graphs.node("SaveSafetyProfile", erasure=["erase", 2]),
        "explore": graphs.node("Explore", **{**quick, "searches": "words", "look": 4}),
        "map": graphs.node("BoundaryMap", boundary=["explore", 0]),
        "report": graphs.node("Report", **quick),
    }
    told = host.run(graph)
    return {graph[name]["class_type"]: told[name] for name in ("inspect", "save", "map", "report")}


def make(kinds: list[str], folder: Path) -> None:
    """One picture of each node."""
    import comfy_client

    with tempfile.TemporaryDirectory() as place:
        base = comfy_client.make_base(Path(place) / "comfyui", comfy_client.twin(Path(place)))
        with comfy_client.running(Path(os.environ["COMFYUI_PATH"]), base) as host:
            task = {"url": f"http://127.0.0.1:{host.port}", "job": "nodes", "settings": LOOK, **SIZE}
            task |= {"kinds": kinds, "results": results(host), "folder": str(folder)}
            script = Path(comfy_client.__file__).with_name("browser.mjs")
            done = subprocess.run(["node", str(script), json.dumps(task)], capture_output=True, text=True)
    seen = json.loads(done.stdout or json.dumps({"error": done.stderr}))
    if seen.get("problems") or seen.get("made") != len(kinds):
        raise SystemExit(f"Not all pictures were made: {seen}")


def main() -> None:
    from tools import node_texts

    nodes, _ = node_texts.load_nodes()  # also finds the tests' modules
    found = shown(node_texts.shown_schemas(nodes))
    make(list(found), node_texts.DOCS / "pictures")
    SHOWN.write_text(text(found), encoding="utf-8")


if __name__ == "__main__":
    main()
