"""Routes for the front end, and the default safety profile that the server puts into every graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from ..erasure_core.errors import ErasureError
from ..erasure_core.foreign import looks_foreign
from ..erasure_core.library import read_manifest
from ..erasure_core.profile import ProfileFailed, SafetyProfile
from .badge import badge_of
from .erasures import located
from .graphs import LINKED, carried_by, is_known, is_link, links, on_every_output, outputs_of
from .host import library
from .profiles import SERVER_ID, load_profile
from .refusal import SettingFailed, default_name, free_key, refused

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
    """What one file that *Load Erasure* lists says about itself; a LoRA of the host's says nothing."""
    name = request.query.get("name", "")
    try:
        path = located(name)
    except ErasureError as error:
        return web.json_response({"error": str(error)}, status=404)
    try:
        if looks_foreign(path):
            return web.json_response(badge_of(name, None, foreign=True))
        return web.json_response(badge_of(name, read_manifest(path)))
    except ErasureError as error:
        return web.json_response(badge_of(name, None, str(error)))


async def default_profile_route(request: web.Request) -> web.Response:
    """The default profile's name, or why there is none."""
    try:
        name = default_name()
        return web.json_response({"profile": load_profile(name).name if name else None})
    except (ErasureError, SettingFailed) as error:
        return web.json_response({"error": str(error)})


def protect(data: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a queued graph so that the default profile is on every MODEL and CLIP in it.

    Old hosts log an exception from here and run the graph as it was sent, so none may leave: a graph that cannot be
    protected is exchanged for one that fails validation with the reason.
    """
    try:
        name = default_name()
        profile = load_profile(name) if name else None
        if profile is not None or "prompt" in data:
            _check_form(data.get("prompt"))
        if profile is not None:
            data = with_profile(data, name, profile)
        return _noted(data, profile)
    except Exception as error:
        logging.error("Concept Erasure refused a graph: %s", error)
        return refused(data, str(error) or type(error).__name__)


def _check_form(prompt: Any) -> None:
    """Raises ProfileFailed for what is no graph: nodes by their ids, each with a type and inputs."""
    if not isinstance(prompt, dict):
        raise ProfileFailed("The graph is malformed: it has no nodes by their ids under 'prompt'.")
    for key, node in prompt.items():
        if not isinstance(node, dict):
            raise ProfileFailed(f"The graph is malformed: node {key} is not a node.")
        for name, kind in (("class_type", str), ("inputs", dict)):
            if not isinstance(node.get(name), kind):
                raise ProfileFailed(f"The graph is malformed: node {key} lacks {name!r}.")


def with_profile(data: dict[str, Any], name: str, profile: SafetyProfile) -> dict[str, Any]:
    """The graph with a profile node behind every node that yields MODEL or CLIP.

    Args:
        data: what was sent.
        name: by which the profile is found; its file may have another name than it gives itself.
        profile: that profile.

    Raises:
        ProfileFailed: a link that leads around the profile nodes.
    """
    prompt: dict[str, Any] = {key: {**node, "inputs": dict(node["inputs"])} for key, node in data["prompt"].items()}
    _exchange_old_nodes(prompt)
    _check_slots(prompt)
    _drop_guards(prompt)
    guards: dict[str, Any] = {}
    places: dict[tuple[str, int], list[Any]] = {}
    for source, node in prompt.items():
        for number, slots in enumerate(_pairs(outputs_of(node["class_type"]))):
            guard = free_key(f"profile_{source}_{number}", prompt)
            inputs = {kind.lower(): [source, slot] for kind, slot in slots.items()}
            inputs |= {"profile": name, "digest": profile.digest()}
            guards[guard] = {"class_type": SERVER_ID, "inputs": inputs}
            places |= {(source, slot): [guard, LINKED.index(kind)] for kind, slot in slots.items()}
    for node in prompt.values():
        for which, (source, slot) in links(node, prompt):
            node["inputs"][which] = list(places.get((source, slot), (source, slot)))
    used = {source for node in prompt.values() for _, (source, _) in links(node, guards)}
    return {**data, "prompt": prompt | {key: guard for key, guard in guards.items() if key in used}}


def _exchange_old_nodes(prompt: dict[str, Any]) -> None:
    """Exchange nodes of old names for those that took their place. Newer hosts do so themselves, but behind this
    handler, which must see what will run."""
    from server import PromptServer

    manager = getattr(getattr(PromptServer, "instance", None), "node_replace_manager", None)
    if manager is not None and not all(is_known(node["class_type"]) for node in prompt.values()):
        manager.apply_replacements(prompt)


def _check_slots(prompt: Mapping[str, Any]) -> None:
    """Raises ProfileFailed for links that the host follows, but that name no output as every other link does.

    The host counts slots below zero from the end, and unwraps a value, which may then be a link.
    """
    for key, node in prompt.items():
        for name, value in node["inputs"].items():
            held = value.get("__value__") if isinstance(value, dict) else value
            if not is_link(held, prompt):
                continue
            kind = prompt[held[0]]["class_type"]
            if not is_known(kind):
                raise ProfileFailed(f"This server has no node of the type {kind!r} (node {held[0]}); install its pack.")
            if held is not value or carried_by(held, prompt) is None:
                raise ProfileFailed(
                    f"The input {name!r} of node {key} is no plain link to an output that node {held[0]} "
                    f"({kind}) has on this server; connect it anew."
                )


def _drop_guards(prompt: dict[str, Any]) -> None:
    """Take profile nodes out that a server has put in: histories and pictures keep graphs as they ran.

    None of them is trusted, for anyone can write one; what they stood behind is guarded anew.

    Raises:
        ProfileFailed: one of them hands on what it is not given.
    """
    for key in [key for key, node in prompt.items() if node["class_type"] == SERVER_ID]:
        own = prompt.pop(key)["inputs"]
        for node in prompt.values():
            for name, (_, slot) in links(node, {key: own}):
                behind = own.get(LINKED[slot].lower())
                if not is_link(behind, prompt):
                    raise ProfileFailed(f"The Server Safety Profile node {key} has nothing to hand on; remove it.")
                node["inputs"][name] = list(behind)


def _pairs(returned: list[str]) -> Iterator[dict[str, int]]:
    """A node's MODEL and CLIP outputs, paired in their order: what belongs together is recognised together."""
    slots = {kind: [i for i, other in enumerate(returned) if other == kind] for kind in LINKED}
    for number in range(max(len(found) for found in slots.values())):
        yield {kind: found[number] for kind, found in slots.items() if number < len(found)}


def _noted(data: dict[str, Any], profile: SafetyProfile | None) -> dict[str, Any]:
    """What was sent, with the active profiles in the metadata that pictures will carry, and no others."""
    active = [{"profile": profile.name, "digest": profile.digest(), "by": "server"}] if profile else []
    for name in on_every_output(data.get("prompt", {})):
        try:
            chosen = load_profile(name)
        except ProfileFailed:
            continue  # this very graph may save it; without it its own node stops the picture
        active.append({"profile": chosen.name, "digest": chosen.digest(), "by": "graph"})
    extra = dict(data.get("extra_data") or {})
    sent = dict(extra.get("extra_pnginfo") or {})
    if not active and METADATA not in sent:
        return data
    # Whoever queues a graph could claim a profile here that was never applied.
    sent.pop(METADATA, None)
    return {**data, "extra_data": {**extra, "extra_pnginfo": {**sent, **({METADATA: active} if active else {})}}}
