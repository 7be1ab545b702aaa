"""Refuses graphs, also where the rest of the pack cannot be loaded: imports the standard library and the host only."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

FOLDER = "erasures"
"""The folder of erasures below the host's folder of models."""
ENVIRONMENT = "CONCEPT_ERASURE_PROFILE"
SETTING = "server.json"
"""In the folder of profiles: {"default_profile": "studio"}. Only who can write to the server's disk can change it."""
REFUSED_ID = "ConceptErasureRefused"


class SettingFailed(Exception):
    """The server's setting of a default profile cannot be read."""


class GraphRefused(Exception):
    """A graph that must not run was run all the same."""


def profile_folder() -> Path:
    """Always the same one: a list of folders that others write must not switch the default profile off."""
    return Path(folder_paths.models_dir) / FOLDER / "profiles"


def default_name() -> str:
    """By what name the profile that every graph gets is found; empty if the server has none set.

    Raises:
        SettingFailed: the setting cannot be read.
    """
    name = os.environ.get(ENVIRONMENT)
    if name is None:
        return _setting()
    if not name.strip():
        raise SettingFailed(f"The environment variable {ENVIRONMENT} is empty; write a profile's name, or remove it.")
    return name.strip()


def _setting() -> str:
    path = profile_folder() / SETTING
    try:
        if not _is_there(path):
            return ""
        if not path.is_file():  # a pipe never ends
            raise ValueError("it is no file, or a link to none")
        name = json.loads(path.read_text(encoding="utf-8-sig"))["default_profile"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SettingFailed(f"The setting {path} cannot be read ({error!r}); correct or remove it.") from error
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise SettingFailed(f"The setting {path} names no profile; write a name or null.")
    return name or ""


def _is_there(path: Path) -> bool:
    """Whether there is an entry of this name, whatever it is.

    Raises:
        OSError: that cannot be told: a folder above it is a link to nowhere, or may not be looked into.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        lost = next((folder for folder in path.parents if folder.is_symlink() and not folder.exists()), None)
        if lost is not None:
            raise OSError(f"{lost} is a link to a folder that is not there") from None
        return False
    return True


def refused(data: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """What was sent, with a graph in its place that never passes validation."""
    kept = {key: value for key, value in data.items() if key not in ("prompt", "partial_execution_targets")}
    # The browser marks the node of this name; it must be none of the user's.
    sent = data.get("prompt")
    own = free_key("concept_erasure_refused", sent if isinstance(sent, dict) else {})
    return {**kept, "prompt": {own: {"class_type": REFUSED_ID, "inputs": {"reason": reason}}}}


def free_key(name: str, prompt: Mapping[str, Any]) -> str:
    """A name that no node of the graph has."""
    while name in prompt:
        name += "_"
    return name


def guard_alone(problem: str) -> list[type]:
    """Where the pack cannot be loaded: refuse every graph that a default profile is meant for.

    Args:
        problem: why the pack cannot be loaded.

    Returns:
        The nodes that this needs.
    """
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(_refusing(problem))
    return [Refused]


def _refusing(problem: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def handler(data: dict[str, Any]) -> dict[str, Any]:
        try:
            name = default_name()
        except Exception as error:  # hosts log what leaves a handler, and run the graph as it was sent
            return refused(data, str(error))
        if not name:
            return data
        reason = (
            f"The default safety profile {name!r} cannot be applied, for Concept Erasure could not be loaded "
            f"({problem}); repair it, or take the setting off the server."
        )
        logging.error("Concept Erasure refused a graph: %s", reason)
        return refused(data, reason)

    return handler


def hidden(schema: io.Schema) -> io.Schema:
    """The schema of a node that only the server puts into graphs: nobody finds it among the nodes to add.

    Newer hosts hide what is for developers only; older ones only what is deprecated.
    """
    setattr(schema, "is_dev_only" if hasattr(schema, "is_dev_only") else "is_deprecated", True)
    return schema


class Refused(io.ComfyNode):
    """Stands in the place of a graph that must not run: it never passes validation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return hidden(
            io.Schema(
                node_id=REFUSED_ID,
                display_name="Refused Graph",
                category="concept erasure/internal",
                description="Put in the place of a graph that the server refuses; it says why and never runs.",
                inputs=[io.String.Input("reason", default="", tooltip="Why the server refused the graph.")],
                outputs=[],
                is_output_node=True,
            )
        )

    @classmethod
    def validate_inputs(cls, reason: str) -> bool | str:
        return reason or "This graph was refused."

    @classmethod
    def execute(cls, reason: str) -> io.NodeOutput:
        raise GraphRefused(reason)
