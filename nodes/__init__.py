"""ComfyUI nodes: schemas and wiring. What they do is in ``erasure_core``."""

from __future__ import annotations

import logging
from typing import Any


async def comfy_entrypoint() -> Any:
    """The pack as ComfyUI wants it. What is missing costs the pack its nodes, never the host its start.

    A default profile that cannot be applied then still stops every graph.
    """
    from comfy_api.latest import ComfyExtension

    from . import refusal

    try:
        nodes = _load()
    except Exception as error:  # whatever is missing on this machine
        problem = f"{type(error).__name__}: {error}"
        logging.error("Concept Erasure is not available: %s", problem)
        nodes = refusal.guard_alone(problem)

    class ConceptErasure(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return nodes

    return ConceptErasure()


def _load() -> list[type]:
    from . import boundary, concept, convert, erase, erasures, host, profiles, purify, report, server

    host.register_folders()
    server.start()
    families = (concept, erase, erasures, boundary, report, purify, profiles, convert)
    return [node for family in families for node in family.NODES]
