"""Routes for the front end, and the default safety profile that the server puts into every graph."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from ..erasure_core.errors import ErasureError
from ..erasure_core.profile import ProfileFailed, SafetyProfile
from .badge import badge_of
from .host import library, profile_folder
from .profiles import APPLY_ID, REFUSED_ID, SERVER_ID, load_profile

ENVIRONMENT = "CONCEPT_ERASURE_PROFILE"
SETTING = "server.json"
"""In the folder of profiles: {"default_profile": "studio"}. Only who can write to the server's disk can change it."""
LINKED = ("MODEL", "CLIP")
METADATA = "concept_erasure_profile"


def start() -> None:
    """Register routes and the handler of queued graphs. Does nothing where no server runs."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/concept_erasure/erasures")(erasures)
    server.routes.get("/concept_erasure/erasure")(erasure)
    server.routes.get("/concept_erasure/default_profile")(default_profile_route)
    server.add_on_prompt_handler(protect)


async def erasures(request: web.Request) -> web.Response:
    """Names of all erasure files."""
    return web.json_response(library().names())


async def erasure(request: web.Request) -> web.Response:
    """What one erasure file says about itself."""
    try:
        entry = library().entry(request.query.get("name", ""))
    except ErasureError as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.json_response(badge_of(entry.name, entry.manifest, entry.problem))


async def default_profile_route(request: web.Request) -> web.Response:
    """The default profile's name, or why there is none."""
    try:
        profile = default_profile()
    except ErasureError as error:
        return web.json_response({"error": str(error)})
    return web.json_response({"profile": profile.name if profile else None})


def default_profile() -> SafetyProfile | None:
    """The profile that every graph gets; ``None`` if the server has none set.

    Raises:
        ProfileFailed: one is set, but it or the setting cannot be read.
    """
    name = os.environ.get(ENVIRONMENT, "").strip() or _setting()
    return load_profile(name) if name else None


def _setting() -> str:
    path = profile_folder() / SETTING
    if not path.exists():
        return ""
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["default_profile"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileFailed(f"The setting {path} cannot be read ({error!r}); correct or remove it.") from error
    if name is not None and not isinstance(name, str):
        raise ProfileFailed(f"The setting {path} names no profile; write a name or null.")
    return name or ""


def protect(data: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a queued graph so that the default profile is on every MODEL and CLIP in it.

    Old hosts log an exception from here and run the graph as it was sent, so none may leave: a graph that cannot be
    protected is exchanged for one that fails validation with the reason.
    """
    try:
        profile = default_profile()
        if profile is not None:
            data = with_profile(data, profile)
        return _noted(data, profile)
    except Exception as error:
        logging.error("Concept Erasure refused a graph: %s", error)
        return refused(data, str(error) or type(error).__name__)


def refused(data: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """What was sent, with a graph in its place that never passes validation."""
    kept = {key: value for key, value in data.items() if key not in ("prompt", "partial_execution_targets")}
    return {**kept, "prompt": {"1": {"class_type": REFUSED_ID, "inputs": {"reason": reason}}}}


def with_profile(data: dict[str, Any], profile: SafetyProfile) -> dict[str, Any]:
    """The graph with a profile node behind every node that yields MODEL or CLIP."""
    prompt: dict[str, Any] = {key: {**node, "inputs": dict(node["inputs"])} for key, node in data["prompt"].items()}
    guards: dict[str, Any] = {}
    places: dict[tuple[str, int], list[Any]] = {}
    for source, node in prompt.items():
        if node["class_type"] == SERVER_ID:
            raise ProfileFailed("The graph holds a Server Safety Profile node of its own; remove it.")
        for number, slots in enumerate(_pairs(_returned(node["class_type"]))):
            guard = _free(f"profile_{source}_{number}", prompt)
            inputs = {kind.lower(): [source, slot] for kind, slot in slots.items()}
            inputs |= {"profile": profile.name, "digest": profile.digest()}
            guards[guard] = {"class_type": SERVER_ID, "inputs": inputs}
            places |= {(source, slot): [guard, LINKED.index(kind)] for kind, slot in slots.items()}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and len(value) == 2 and (str(value[0]), value[1]) in places:
                node["inputs"][name] = list(places[str(value[0]), value[1]])
    used = {
        str(value[0])
        for node in prompt.values()
        for value in node["inputs"].values()
        if isinstance(value, list) and value
    }
    return {**data, "prompt": prompt | {key: guard for key, guard in guards.items() if key in used}}


def _returned(class_type: str) -> list[str]:
    """The types of a node's outputs; none for a node that the host does not have, whose graph it refuses itself."""
    import nodes

    known = nodes.NODE_CLASS_MAPPINGS.get(class_type)
    return [str(kind) for kind in getattr(known, "RETURN_TYPES", ())]


def _pairs(returned: list[str]) -> Iterator[dict[str, int]]:
    """A node's MODEL and CLIP outputs, paired in their order: what belongs together is recognised together."""
    slots = {kind: [i for i, other in enumerate(returned) if other == kind] for kind in LINKED}
    for number in range(max(len(found) for found in slots.values())):
        yield {kind: found[number] for kind, found in slots.items() if number < len(found)}


def _free(name: str, prompt: Mapping[str, Any]) -> str:
    while name in prompt:
        name += "_"
    return name


def _noted(data: dict[str, Any], profile: SafetyProfile | None) -> dict[str, Any]:
    """What was sent, with the active profiles in the metadata that pictures will carry, and no others."""
    active = [{"profile": profile.name, "digest": profile.digest(), "by": "server"}] if profile else []
    for node in data.get("prompt", {}).values():
        if node.get("class_type") == APPLY_ID and isinstance(node["inputs"].get("profile"), str):
            chosen = load_profile(node["inputs"]["profile"])
            active.append({"profile": chosen.name, "digest": chosen.digest(), "by": "graph"})
    extra = dict(data.get("extra_data") or {})
    sent = dict(extra.get("extra_pnginfo") or {})
    if not active and METADATA not in sent:
        return data
    # Whoever queues a graph could claim a profile here that was never applied.
    sent.pop(METADATA, None)
    return {**data, "extra_data": {**extra, "extra_pnginfo": {**sent, **({METADATA: active} if active else {})}}}
