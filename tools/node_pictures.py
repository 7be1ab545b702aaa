"""Makes the pictures of the nodes on their help pages, in a real ComfyUI: python -m tools.node_pictures

For developers. COMFYUI_PATH, COMFYUI_PYTHON and PLAYWRIGHT_CORE name what the tests in a real host use as well. Every
node is shown as it is added to a graph; where a node shows a result, it has one of the proving ground's model.

Writes web/docs/pictures/*.jpg, and beside this file what of each node they show. A test compares that with the nodes as
they are, so whoever changes a node's inputs or a method's settings runs it once.

With names of example workflows it makes their pictures instead: they run on the proving ground's model, at its size and
about a thing that it knows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools import node_texts

SHOWN = Path(__file__).with_suffix(".json")
COMMAND = "python -m tools.node_pictures"
INTERNAL = ("ConceptErasureRefused", "ConceptErasureServerProfile")
"""Only the server puts these into graphs: no pictures."""
LOOK = {
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None", "Comfy.Locale": "en", "Comfy.ColorPalette": "dark",
    "Comfy.Minimap.Visible": False,
}  # fmt: skip
SIZE = {"width": 1500, "height": 1500}
"""Of the browser's window; the tallest node must fit."""
WORKFLOW_VALUES = {
    "ckpt_name": "twin.safetensors", "words": "ball", "alternative": "box", "keep": "a red box\na blue star",
    "text": "a red ball", "width": 64, "height": 64, "resolution": 64, "cfg": 5, "sampler_name": "ddim",
    "scheduler": "ddim_uniform", "steps": 40, "batch": 2, "trajectories": 4, "trajectory_steps": 10,
    "preview_every": 20, "start": "closed_form", "seconds": 10, "harden_seconds": 10,
}  # fmt: skip
"""By the names of widgets: what the proving ground's model knows, and what is done in minutes on a CPU."""
OWN_VALUES = {"erase_with_combined": {"start": "nothing", "steps": 100}}
"""Of a workflow for itself: a text encoder has no closed form to start from."""


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


def erasing(graphs: Any) -> dict[str, Any]:
    """Nodes that leave a file in the lists."""
    return {
        "base": graphs.paint()["base"],
        **graphs.erase("closed_form"),
        "save": graphs.node("Save", erasure=["erase", 2]),
    }


def results(host: Any) -> dict[str, Any]:
    """What nodes tell the browser when they have run, by node type."""
    from comfy_client import Graphs  # found once the nodes are loaded

    graphs = Graphs(host)
    links = {"model": ["base", 0], "clip": ["base", 1], "concept": ["concept", 0], "erasure": ["erase", 2]}
    quick = {**links, "vae": ["base", 2], "seconds": 10, "states": 2, "resolution": 64}
    graph = {
        **erasing(graphs),
        "keep": graphs.node("SaveSafetyProfile", erasure=["erase", 2]),
        "inspect": graphs.node("Inspect", erasure=["erase", 2]),
        "explore": graphs.node("Explore", **{**quick, "searches": "words", "look": 4}),
        "map": graphs.node("BoundaryMap", boundary=["explore", 0]),
        "report": graphs.node("Report", **quick),
    }
    told = host.run(graph)
    return {graph[name]["class_type"]: told[name] for name in ("inspect", "save", "map", "report")}


def browse(host: Any, job: str, **task: Any) -> dict[str, Any]:
    """What a job of the tests' browser saw."""
    task |= {"url": f"http://127.0.0.1:{host.port}", "job": job, "settings": LOOK}
    script = node_texts.ROOT / "tests" / "comfyui" / "browser.mjs"
    done = subprocess.run(["node", str(script), json.dumps(task)], capture_output=True, text=True)
    seen: dict[str, Any] = json.loads(done.stdout or json.dumps({"error": done.stderr}))
    if "error" in seen or seen["problems"]:
        raise SystemExit(f"No picture: {seen}")
    return seen


def picture_workflows(host: Any, names: list[str]) -> None:
    from comfy_client import Graphs

    graphs = Graphs(host)
    made = host.run(erasing(graphs))["save"]["erasure"][0]["file"]
    for name in ("first.safetensors", "second.safetensors"):  # as the workflows call them
        shutil.copy(host.base / "models/erasures" / made, host.base / "models/erasures" / name)
    load = graphs.node("Load", file="first.safetensors")
    host.run({"load": load, "keep": graphs.node("SaveSafetyProfile", erasure=["load", 0])})
    for path in (node_texts.ROOT / "example_workflows" / f"{name}.json" for name in names):
        workflow, picture = json.loads(path.read_text(encoding="utf-8")), str(path.with_suffix(".jpg"))
        values = WORKFLOW_VALUES | OWN_VALUES.get(path.stem, {})
        seen = browse(host, "workflow", workflow=workflow, values=values, picture=picture)
        if seen["ended"] != "execution_success":
            raise SystemExit(f"{path.name} did not run: {seen}")


def main() -> None:
    nodes, _ = node_texts.load_nodes()
    import comfy_client

    with tempfile.TemporaryDirectory() as place:
        base = comfy_client.make_base(Path(place) / "comfyui", comfy_client.twin(Path(place)))
        with comfy_client.running(Path(os.environ["COMFYUI_PATH"]), base) as host:
            if sys.argv[1:]:
                picture_workflows(host, sys.argv[1:])
            else:
                found = shown(node_texts.shown_schemas(nodes))
                folder = str(node_texts.DOCS / "pictures")
                browse(host, "nodes", kinds=list(found), results=results(host), folder=folder, **SIZE)
                SHOWN.write_text(text(found), encoding="utf-8")


if __name__ == "__main__":
    main()
