"""The pack's nodes on the fake host, run as the host runs them."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import torch

PACK = "concept_erasure_pack"


class Nodes:
    """The pack's nodes by id, and what they are made of."""

    def __init__(self) -> None:
        entry = importlib.import_module(f"{PACK}.nodes").comfy_entrypoint
        self.all = {node.define_schema().node_id: node for node in asyncio.run(asyncio.run(entry()).get_node_list())}
        names = ("host", "server", "profiles", "erase", "training_progress", "refusal")
        self.host, self.server, self.profiles, self.erase, self.progress, self.refusal = (
            importlib.import_module(f"{PACK}.nodes.{name}") for name in names
        )
        self.core: Any = importlib.import_module(f"{PACK}.erasure_core.errors")

    def run(self, kind: str, /, **inputs: Any) -> Any:
        """Run a node as the host does: widgets at their defaults, in inference mode."""
        node = self.all[f"ConceptErasure{kind}"]
        schema = node.define_schema()
        defaults = {each.id: each.default for each in schema.inputs if each.default is not None}
        with torch.inference_mode():
            return node.execute(**{**defaults, **inputs})


def concept(nodes: Nodes, words: str = "ball", **more: Any) -> Any:
    return nodes.run("Concept", words=words, **more).args[0]


WIDGETS = ("BOOLEAN", "INT", "FLOAT", "STRING", "COMBO")
SMALL = {"steps": 3, "trajectories": 5, "trajectory_steps": 3, "batch": 2, "rank": 4, "resolution": 64}


def instant(nodes: Nodes, graph: dict[str, Any], word: str = "ball") -> Any:
    """An erasure at once, without a look around for other words."""
    chosen = {"model": graph["model"], "clip": graph["clip"], "concept": concept(nodes, word), "resolution": 64}
    return nodes.run("Erase_closed_form", **chosen, replace=False, neighbours=0)
