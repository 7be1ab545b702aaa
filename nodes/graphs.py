"""A queued graph as plain data: its links, what they carry, and the profiles that no picture of it gets around."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .profiles import APPLY_ID

LINKED = ("MODEL", "CLIP")
"""The types of links that erasures are put on."""

Graph = Mapping[str, Any]
"""Nodes by id, each with class_type and inputs, as the host gets them."""


def is_link(value: Any, graph: Graph) -> bool:
    """Whether an input's value is [node, slot] with a node of the graph, whatever the slot."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in graph


def links(node: Mapping[str, Any], graph: Graph) -> list[tuple[str, list[Any]]]:
    """A node's inputs that are links: name and [node, slot]."""
    return [(name, value) for name, value in node["inputs"].items() if is_link(value, graph)]


def outputs_of(class_type: str) -> list[str]:
    """The types of a node's outputs; none for a node that the host does not have, whose graph it refuses itself."""
    return [str(kind) for kind in getattr(_class(class_type), "RETURN_TYPES", ())]


def is_known(class_type: str) -> bool:
    """Whether the host has a node of this type."""
    return _class(class_type) is not None


def _class(class_type: str) -> Any:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS.get(class_type)


def carried_by(link: list[Any], graph: Graph) -> str | None:
    """The type that a link carries; ``None`` where the slot is no output's number, though the host may follow it."""
    source, slot = link
    outputs = outputs_of(graph[source]["class_type"])
    return outputs[slot] if type(slot) is int and 0 <= slot < len(outputs) else None


def on_every_output(graph: Graph) -> list[str]:
    """The profiles of the graph's own nodes that no output gets around: all pictures carry the same metadata."""
    places: dict[str, set[str]] = {}
    for key, node in graph.items():
        if node.get("class_type") == APPLY_ID and isinstance(node["inputs"].get("profile"), str):
            places.setdefault(node["inputs"]["profile"], set()).add(key)
    if not places:
        return []
    outputs = [key for key, node in graph.items() if getattr(_class(node["class_type"]), "OUTPUT_NODE", False)]
    painting = [key for key in outputs if _inputs(key, graph) != {"ERASURE"}]  # those save files, and no pictures
    return [name for name, on in places.items() if painting and all(_is_behind(on, key, graph) for key in painting)]


def _inputs(key: str, graph: Graph) -> set[str | None]:
    return {carried_by(link, graph) for _, link in links(graph[key], graph)}


def _is_behind(places: set[str], output: str, graph: Graph) -> bool:
    """Whether the MODELs and CLIPs that reach an output all come through nodes of these places, and one does."""
    waiting, seen, found = [output], {output}, False
    while waiting:
        for _, link in links(graph[waiting.pop()], graph):
            source = link[0]
            if source in places:
                found = True
                continue
            loads = not _inputs(source, graph) & set(LINKED)
            if loads and carried_by(link, graph) in (*LINKED, None):
                return False
            waiting += [source] if source not in seen else []
            seen.add(source)
    return found
