"""Makes example_workflows/*.json from the short descriptions below; python -m tools.node_texts writes them.

A workflow stores the values of widgets by position. The order of this pack's widgets comes from the nodes themselves,
that of the host's few nodes from ``STOCK``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "example_workflows"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
LINKS = (
    "MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE", "CONCEPT", "ERASURE", "BOUNDARY", "LORA_MODEL",
    "LOSS_MAP", "CLIP_VISION",
)  # fmt: skip

STOCK = {
    "CheckpointLoaderSimple": ({"ckpt_name": "COMBO"}, ("MODEL", "CLIP", "VAE")),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSampler": (
        {
            "model": "MODEL", "seed": "INT", "steps": "INT", "cfg": "FLOAT", "sampler_name": "COMBO",
            "scheduler": "COMBO", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT",
            "denoise": "FLOAT",
        },
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "Note": ({"text": "STRING"}, ()),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, ()),
}  # fmt: skip
"""Inputs and outputs of the host's own nodes, in its order."""

Graph = dict[str, tuple[str, tuple[int, int], dict[str, Any]]]
"""Name to node type, place on the canvas, and inputs: values, or ("name", output number)."""
TITLE = "(title)"
"""Among the inputs: what the node is called, where its own name does not say enough."""

BASE: Graph = {"base": ("CheckpointLoaderSimple", (0, 0), {"ckpt_name": CHECKPOINT})}


def painting(tag: str, model: tuple[str, int], clip: tuple[str, int], place: tuple[int, int], prompt: str) -> Graph:
    """Nodes that paint a prompt with fixed noise and show it."""
    x, y = place
    noise = {"seed": 7, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {
        "model": model,
        "positive": (f"yes{tag}", 0),
        "negative": (f"no{tag}", 0),
        "latent_image": (f"blank{tag}", 0),
    }
    return {
        f"yes{tag}": ("CLIPTextEncode", (x, y), {"clip": clip, "text": prompt}),
        f"no{tag}": ("CLIPTextEncode", (x, y + 220), {"clip": clip, "text": ""}),
        f"blank{tag}": ("EmptyLatentImage", (x, y + 440), {"width": 512, "height": 512, "batch_size": 1}),
        f"paint{tag}": ("KSampler", (x + 440, y), {**links, **noise}),
        f"see{tag}": ("VAEDecode", (x + 860, y), {"samples": (f"paint{tag}", 0), "vae": ("base", 2)}),
        f"save{tag}": ("SaveImage", (x + 860, y + 120), {"images": (f"see{tag}", 0), "filename_prefix": "erasure"}),
    }


def erasing(method: str, **settings: Any) -> Graph:
    words = {
        "words": "Vincent van Gogh\nstarry night style",
        "keep": "a painting by Claude Monet\na photo of a town at night",
    }
    links = {"model": ("base", 0), "clip": ("base", 1), "concept": ("concept", 0), "vae": ("base", 2)}
    return {
        "concept": ("ConceptErasureConcept", (0, 160), {**words, "alternative": "oil painting", "explicit": False}),
        "erase": (f"ConceptErasureErase_{method}", (440, 0), {**links, **settings}),
    }


def hardening() -> Graph:
    """Erase at once, look for what leaks, erase that too, and measure the result."""
    model = {"model": ("base", 0), "clip": ("base", 1)}
    return {
        **erasing("closed_form"),
        "explore": (
            "ConceptErasureExplore",
            (440, 900),
            {**model, "concept": ("concept", 0), "erasure": ("erase", 2), "seconds": 120, "vae": ("base", 2)},
        ),
        "map": ("ConceptErasureBoundaryMap", (900, 0), {"boundary": ("explore", 0), "selected": ""}),
        "again": (
            "ConceptErasureErase_closed_form",
            (2000, 0),
            {**model, "concept": ("map", 0), "vae": ("base", 2), "harden": 2, "harden_seconds": 120},
        ),
        "report": (
            "ConceptErasureReport",
            (2460, 0),
            {**model, "concept": ("concept", 0), "erasure": ("erase", 2), "second": ("again", 2), "vae": ("base", 2)},
        ),
    }


def hint(place: tuple[int, int], text: str) -> Graph:
    """A note on the canvas."""
    return {"hint": ("Note", place, {"text": text})}


CHOOSE = (
    "The files named here are placeholders: you have none of these names yet. Make one with the template {template}: "
    "it is in models/erasures then. Press R, and choose it in the Load Erasure {nodes} here."
)


def stack() -> Graph:
    how = {"model": ("base", 0), "clip": ("base", 1), "erasure": ("stack", 0)}
    parts = {"first": ("one", 0), "second": ("two", 0), "strength_first": 1.0, "strength_second": 0.8}
    return {
        "one": ("ConceptErasureLoad", (0, 160), {"file": "first.safetensors", "erases": ""}),
        "two": ("ConceptErasureLoad", (0, 520), {"file": "second.safetensors", "erases": ""}),
        **hint((0, 880), CHOOSE.format(template="erase_with_combined", nodes="nodes")),
        "stack": ("ConceptErasureStack", (440, 160), parts),
        "apply": ("ConceptErasureApply", (440, 400), how),
    }


def profile() -> Graph:
    return {
        "one": ("ConceptErasureLoad", (0, 160), {"file": "first.safetensors", "erases": ""}),
        **hint((0, 520), CHOOSE.format(template="erase_with_combined", nodes="node")),
        "keep": (
            "ConceptErasureSaveSafetyProfile",
            (440, 160),
            {"erasure": ("one", 0), "name": "studio", TITLE: "1. Save Safety Profile: queue once"},
        ),
        "safe": (
            "ConceptErasureSafetyProfile",
            (440, 0),
            {
                "model": ("base", 0),
                "clip": ("base", 1),
                "profile": "studio",
                TITLE: "2. Safety Profile: press R, choose it, queue again",
            },
        ),
    }


TOWN = "a town at night by Vincent van Gogh"


def comparing(method: str) -> Graph:
    """Erase, and paint the same prompt and noise without and with the erasure."""
    return {
        **BASE,
        **erasing(method),
        **painting("1", ("base", 0), ("base", 1), (900, 0), TOWN),
        **painting("2", ("erase", 0), ("erase", 1), (900, 640), TOWN),
    }


WORKFLOWS: dict[str, Graph] = {
    "erase_with_combined": comparing("auto"),
    "erase_and_compare": comparing("esd"),
    "instant_erase": {
        **BASE,
        **erasing("closed_form"),
        **painting("1", ("erase", 0), ("erase", 1), (900, 0), TOWN),
    },
    "apply_a_stack": {**BASE, **stack(), **painting("1", ("apply", 0), ("apply", 1), (900, 0), TOWN)},
    "explore_then_harden": {**BASE, **hardening()},
    "safety_profile": {**BASE, **profile(), **painting("1", ("safe", 0), ("safe", 1), (900, 0), TOWN)},
}


def texts(schemas: dict[str, Any]) -> dict[Path, str]:
    """All example workflows as files.

    Args:
        schemas: of this pack's nodes, by id.
    """
    known = {kind: _stock(*parts) for kind, parts in STOCK.items()}
    known |= {kind: _info(schema) for kind, schema in schemas.items()}
    return {
        FOLDER / f"{name}.json": json.dumps(_workflow(graph, known), indent=1, ensure_ascii=False) + "\n"
        for name, graph in WORKFLOWS.items()
    }


def _stock(inputs: dict[str, str], outputs: tuple[str, ...]) -> dict[str, Any]:
    return {"inputs": [(name, kind, None) for name, kind in inputs.items()], "outputs": [(o, o) for o in outputs]}


def _info(schema: Any) -> dict[str, Any]:
    """Inputs with types and defaults, the required ones first as the host lists them; outputs with names and types."""
    ordered = sorted(schema.inputs, key=lambda each: each.optional)
    inputs = [(each.id, each.io_type, each.default) for each in ordered]
    return {"inputs": inputs, "outputs": [(each.display_name, each.io_type) for each in schema.outputs]}


def _workflow(graph: Graph, known: dict[str, Any]) -> dict[str, Any]:
    """A graph in the format that the front end loads."""
    ids = {name: number for number, name in enumerate(graph, 1)}
    links: list[list[Any]] = []
    nodes = [_node(ids, name, *graph[name], known[graph[name][0]], links) for name in graph]
    for node in nodes:
        for slot, output in enumerate(node["outputs"]):
            output["links"] = [link[0] for link in links if link[1:3] == [node["id"], slot]]
    return {
        "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [],
        "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def _node(
    ids: dict[str, int],
    name: str,
    kind: str,
    place: tuple[int, int],
    given: dict[str, Any],
    info: dict[str, Any],
    links: list[list[Any]],
) -> dict[str, Any]:
    inputs, values = [], []
    for field, io_type, default in info["inputs"]:
        if io_type in LINKS:
            link = None
            if isinstance(given.get(field), tuple):
                source, slot = given[field]
                link = len(links) + 1
                links.append([link, ids[source], slot, ids[name], len(inputs), io_type])
            inputs.append({"name": field, "type": io_type, "link": link})
            continue
        values.append(given.get(field, default))
        if kind == "KSampler" and field == "seed":
            values.append("fixed")  # the front end's own widget behind a seed
    outputs = [{"name": n, "type": t, "links": []} for n, t in info["outputs"]]
    title = {"title": given[TITLE]} if TITLE in given else {}
    return {
        "id": ids[name], "type": kind, **title, "pos": list(place), "size": [380, 200], "flags": {},
        "order": ids[name] - 1, "mode": 0, "inputs": inputs, "outputs": outputs,
        "properties": {"Node name for S&R": kind}, "widgets_values": values,
    }  # fmt: skip
