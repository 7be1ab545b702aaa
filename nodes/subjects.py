"""What is measured: erasures on a link, bound to the model as it arrives, and folders for what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths

from ..erasure_core.combining import Part, merge
from ..erasure_core.delta import DeltaSet
from ..erasure_core.errors import ModelError, OutputError
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import bound, carried
from ..erasure_core.layers import is_text
from ..erasure_core.library import safe_stem
from .host import Item, Stack
from .profiles import is_of_profile

FOLDER = "concept_erasure"
"""Below the output folder: one folder for each result."""


def loaded_model(model: Any, clip: Any, vae: Any, resolution: int, pictures: bool) -> ComfyModel:
    """The graph's model; raises ModelError where pictures are wanted and no VAE is connected."""
    if pictures and vae is None:
        raise ModelError("Pictures need a VAE: connect one, or switch pictures off.")
    return ComfyModel(model, clip, vae, resolution)


def erasures_of(model: ComfyModel, stack: Stack) -> list[tuple[DeltaSet, float]]:
    """The changes on a link with their strengths.

    Raises:
        WrongBase: one was made on another model.
        ModelError: the model carries one of them already.
    """
    found = []
    for item in stack:
        deltas = _bound(model, item)
        for wanted, strength in ((False, item.unet), (True, item.text)):
            part = {name: deltas[name] for name in deltas if is_text(name) == wanted}
            found += [(DeltaSet(part), strength)] if part else []
    return found


def sum_of(model: ComfyModel, stack: Stack) -> tuple[DeltaSet, float]:
    """All of a link as one change and its strength; raises as ``erasures_of``."""
    item = stack[0]
    if len(stack) == 1 and item.unet == item.text:
        return _bound(model, item), item.unet
    for each in stack:
        _bound(model, each)
    return merge(model, [Part(each.stored, each.unet, each.text) for each in stack]).deltas.to(model.device), 1.0


def _bound(model: ComfyModel, item: Item) -> DeltaSet:
    deltas = bound(item.stored, model)
    found = carried(model, deltas)
    if found is not None and is_of_profile(*found):
        raise ModelError(
            f"MODEL carries {item.stored.path.name} already, by a safety profile of the graph or of the server, so it "
            "would count twice. Switch that profile off to measure the file."
        )
    if found is not None:
        raise ModelError(
            f"MODEL carries {item.stored.path.name} already, so it would count twice. Connect the model from before "
            "the Erase or Apply node, and the erasure beside it."
        )
    return deltas


def new_folder(stem: str) -> Path:
    """A folder of its own for one result, below the host's output folder; none is ever written twice.

    Raises:
        OutputError: it cannot be made.
    """
    parent = Path(folder_paths.get_output_directory()) / FOLDER
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = parent / f"{safe_stem(stem)[:80]}_{number:05d}"
            if not folder.exists():
                folder.mkdir()
                return folder
    except OSError as error:
        raise OutputError(f"The folder {parent} cannot be written ({error.strerror}); check its rights.") from error
    raise OutputError(f"The folder {parent} holds too many results of this name; remove some.")


def shown_file(path: Path) -> dict[str, str]:
    """How the browser asks for a file below the output folder."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}
