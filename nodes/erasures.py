"""Nodes for finished erasures: load, apply, stack, save, inspect."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..erasure_core.combining import UNKNOWN, Part, merge, stored_form
from ..erasure_core.concept import Concept
from ..erasure_core.delta import LowRankDelta
from ..erasure_core.erasing import describe
from ..erasure_core.erasure_file import Erasure, read_erasure, write_erasure
from ..erasure_core.errors import ErasureError, InvalidFile, ModelError
from ..erasure_core.foreign import CONVERTED, looks_foreign, missing_of, read_foreign
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import Strengths, apply_deltas, bound, check_blocks, parse_blocks
from ..erasure_core.library import read_manifest
from ..erasure_core.manifest import Manifest
from ..erasure_core.plain_weights import PICKLES
from ..erasure_core.safe_files import copy_file, read_tensors
from .badge import badge_of, missing
from .host import CATEGORY, PREFIX, ErasureType, Item, Stack, file_fingerprint, library, lines, working
from .refusal import FOLDER

LONGEST = 200
"""Characters of one setting that are shown: a list of rounds or words may be long."""
LORAS = "loras/"
"""Begins the names of files that lie in the host's folder of LoRAs."""

BLOCK = re.compile(r"\.(?=attentions|resnets|transformer_blocks|downsamplers|upsamplers|self_attn|mlp|to_|conv)")
"""Where the name of a layer goes on inside its block."""


def listed() -> list[str]:
    """The files that can be loaded: erasures first, then foreign weights beside them and the host's LoRAs."""
    names = library().names()
    for folder in library().folders:
        foreign = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in PICKLES)
        names += sorted(foreign, key=str.casefold)
    names += [f"{LORAS}{name}" for name in folder_paths.get_filename_list("loras")]
    return list(dict.fromkeys(names))  # an own folder may be called loras too


def located(name: str) -> Path:
    """The file of a listed name.

    Raises:
        InvalidFile: it is not listed: missing, or leading out of the folders.
    """
    if name not in listed():
        raise InvalidFile(f"There is no file {name!r} among the erasures and LoRAs; refresh the list and choose again.")
    for folder in library().folders:
        if (folder / name).is_file():
            return folder / name
    return Path(folder_paths.get_full_path_or_raise("loras", name.removeprefix(LORAS)))


class LoadErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Load",
            display_name="Load Erasure",
            category=CATEGORY,
            description=f"An erasure from models/{FOLDER}, a LoRA, or weights that ESD, UCE and others publish.",
            inputs=[
                io.Combo.Input("file", options=listed(), tooltip=f"Files in models/{FOLDER}, then LoRAs."),
                io.String.Input(
                    "erases",
                    multiline=True,
                    default="",
                    tooltip="Only for foreign weights, which do not say it themselves: what they erase, one per line.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Only for foreign weights: the model that they were made on."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Only where foreign weights change the text encoder: that model's."
                ),
            ],
            outputs=[ErasureType.Output("erasure", display_name="erasure")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        try:
            # A linked name is known when the graph runs, and looked up then.
            if file is not None:
                located(file)
        except InvalidFile as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str | None, **others: Any) -> str | float:
        if file is None:
            return math.nan  # equal to nothing, so that the file is read again
        try:
            path = located(file)
        except InvalidFile:
            return ""
        return _content(path, file_fingerprint([path]))

    @classmethod
    def execute(cls, file: str, erases: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        with working():
            path = located(file)
            item = _foreign(path, lines(erases), model, clip) if looks_foreign(path) else Item(read_erasure(path))
            return io.NodeOutput((item,), ui={"erasure": [badge_of(file, item.stored.manifest)]})


def _foreign(path: Path, words: tuple[str, ...], model: Any, clip: Any) -> Item:
    if model is None:
        raise ModelError(f"{path.name} holds weights of other software: connect the MODEL that it was made on.")
    loaded = ComfyModel(model, clip)
    found = read_foreign(path, loaded, loaded.other_parameters())
    said = Concept(words or (UNKNOWN,))
    manifest = describe(loaded, found.deltas, said, *CONVERTED, found.source(path))
    return Item(stored_form(loaded, found.deltas, manifest, path), is_file=False, noise=found.noise)


@lru_cache(maxsize=256)
def _content(path: Path, state: str) -> str:
    """A hash of what an erasure's file changes and says, but for figures that were measured: where a Report Card writes
    them into the file, the nodes behind its Load would else run again, the report among them.

    Args:
        path: the file.
        state: its size and time of change, by which the hash is remembered; given back for what is no erasure file.
    """
    try:
        manifest = read_manifest(path)
        if manifest is None:
            return state
        tensors, _ = read_tensors(path)
    except ErasureError:
        return state
    digest = hashlib.sha256(replace(manifest, measured={}).to_json().encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"{path} {digest.hexdigest()}"


class ApplyErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id=f"{PREFIX}Apply",
            display_name="Apply Erasure",
            category=CATEGORY,
            description="Puts erasures on a model by the host's own patches; nothing is changed for good.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the erasure was made on, LoRAs before it are fine."),
                ErasureType.Input("erasure", tooltip="One erasure or a stack of them."),
                io.Float.Input(
                    "strength",
                    **strength,
                    tooltip="Of changes of the diffusion network: 1 as made, 0 off; above 1 stronger than made, with "
                    "more damage. Those of the text encoder follow strength_text alone.",
                ),
                io.Float.Input(
                    "strength_text",
                    **strength,
                    tooltip="Of changes of the text encoder; an erasure made with layers text-encoder has no others.",
                ),
                io.String.Input(
                    "block_weights",
                    multiline=True,
                    default="",
                    placeholder="unet.down_blocks.* = 0.5",
                    tooltip="Further factors, one per line: a pattern of layer names (* fits anything) = a number. "
                    "Inspect Erasure lists the names.",
                ),
                io.Float.Input("start", default=0.0, **share, tooltip="Share of the sampling at which it begins."),
                io.Float.Input(
                    "end",
                    default=1.0,
                    **share,
                    tooltip="Share of the sampling at which it ends. The text encoder's part always holds throughout. "
                    "A node that merges models loses a change for a part of the sampling that its second input has.",
                ),
                io.Boolean.Input(
                    "allow_other_base",
                    default=False,
                    tooltip="Also on a model it was not made on, if the shapes agree. Judge the pictures yourself.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Needed where an erasure changes the text encoder."),
            ],
            outputs=[
                io.Model.Output("erased_model", display_name="model"),
                io.Clip.Output("erased_clip", display_name="clip"),
            ],
        )

    @classmethod
    def execute(cls, model: Any, erasure: Stack, clip: Any = None, **how: Any) -> io.NodeOutput:
        with working():
            strengths = Strengths(1.0, 1.0, parse_blocks(how["block_weights"]), how["start"], how["end"])
            stack = tuple(item.times(how["strength"], how["strength_text"]) for item in erasure)
            return io.NodeOutput(*apply_stack(model, clip, stack, strengths, how["allow_other_base"]))


def apply_stack(
    model: Any, clip: Any, stack: Stack, strengths: Strengths, allow_other_base: bool = False
) -> tuple[Any, Any]:
    """MODEL and CLIP with erasures on them, all checked before; raises as ``bound``, ``check_blocks`` and
    ``apply_deltas``."""
    check_clip(stack, clip)
    loaded = ComfyModel(model, clip)
    # Patches wait in the CPU's memory until the host wants them: it counts and frees what it moves itself.
    changes = [bound(item.stored, loaded, allow_other_base, torch.device("cpu")) for item in stack]
    check_blocks(strengths.blocks, [name for deltas in changes for name in deltas])
    for item, deltas in zip(stack, changes, strict=True):
        weighted = replace(strengths, unet=item.unet, text=item.text)
        model, clip = apply_deltas(ComfyModel(model, clip), deltas, weighted)
    return model, clip


def check_clip(stack: Stack, clip: Any) -> None:
    """Raises ModelError where an erasure changes the text encoder and none is connected."""
    for item in stack:
        if clip is None and any(name.startswith("lora_te") for name in item.stored.changes):
            raise ModelError(f"{item.stored.path.name} changes the text encoder: connect CLIP as well.")


class StackErasures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        strength = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}
        return io.Schema(
            node_id=f"{PREFIX}Stack",
            display_name="Stack Erasures",
            category=CATEGORY,
            description="Several erasures as one link. Their changes add up; the order does not matter.",
            inputs=[
                ErasureType.Input("first", tooltip="One erasure or a stack."),
                ErasureType.Input("second", tooltip="Another one."),
                io.Float.Input("strength_first", **strength, tooltip="Strength of all of the first input."),
                io.Float.Input("strength_second", **strength, tooltip="Strength of all of the second input."),
                ErasureType.Input("third", optional=True, tooltip="A third one, at its own strength."),
                ErasureType.Input("fourth", optional=True, tooltip="A fourth one, at its own strength."),
            ],
            outputs=[ErasureType.Output("erasure", display_name="erasure")],
        )

    @classmethod
    def execute(
        cls,
        first: Stack,
        second: Stack,
        strength_first: float,
        strength_second: float,
        third: Stack = (),
        fourth: Stack = (),
    ) -> io.NodeOutput:
        weighted = [item.times(strength_first, strength_first) for item in first]
        weighted += [item.times(strength_second, strength_second) for item in second]
        return io.NodeOutput((*weighted, *third, *fourth))


class SaveErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Save",
            display_name="Save Erasure",
            category=CATEGORY,
            description=f"Writes one file to models/{FOLDER}: a copy of one erasure, or the sum of a stack.",
            inputs=[
                ErasureType.Input("erasure", tooltip="What is written: one erasure, or a stack as its sum."),
                io.String.Input(
                    "name", default="my erasure", tooltip="File name; a taken one gets a number behind it."
                ),
                io.Model.Input("model", optional=True, tooltip="Needed for a stack, a strength or a conversion."),
                io.Clip.Input("clip", optional=True, tooltip="Needed too where the text encoder is changed."),
            ],
            outputs=[
                ErasureType.Output("saved", display_name="erasure"),
                io.String.Output("path", display_name="path"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, erasure: Stack, name: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        with working():
            path = library().free_path(name)
            only = _as_it_is(erasure)
            if only is not None and only.is_file:
                copy_file(only.stored.path, path)
            elif model is None:
                raise ModelError("This is more than a copy of one file: connect the MODEL (and CLIP) it was made on.")
            else:
                check_clip(erasure, clip)
                loaded = ComfyModel(model, clip)
                write_erasure(path, _joined(erasure, loaded), loaded)
            shown = badge_of(path.name, read_manifest(path))
            return io.NodeOutput((Item(read_erasure(path)),), str(path), ui={"erasure": [shown]})


def _as_it_is(erasure: Stack) -> Item | None:
    """The only one of a stack, if it has its full strength."""
    return erasure[0] if len(erasure) == 1 and erasure[0].unet == erasure[0].text == 1.0 else None


def _joined(erasure: Stack, model: ComfyModel) -> Erasure:
    """A stack as one erasure: a converted one with the description that it has, else the sum; raises as ``merge``."""
    only = _as_it_is(erasure)
    if only is not None and only.stored.manifest is not None:
        return Erasure(only.stored.bind(model, device=torch.device("cpu")), only.stored.manifest)
    return merge(model, [Part(item.stored, item.unet, item.text) for item in erasure])


class InspectErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Inspect",
            display_name="Inspect Erasure",
            category=CATEGORY,
            description="What erasures say about themselves, and what they change.",
            inputs=[
                ErasureType.Input("erasure", tooltip="One erasure or a stack; each is described."),
                io.Model.Input(
                    "model", optional=True, tooltip="Lists what block_weights of Apply Erasure can name on this model."
                ),
                io.Clip.Input("clip", optional=True, tooltip="Needed too where the text encoder is changed."),
            ],
            outputs=[io.String.Output("text", display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, erasure: Stack, model: Any = None, clip: Any = None) -> io.NodeOutput:
        with working():
            loaded = None if model is None else ComfyModel(model, clip)
            if loaded is not None:
                check_clip(erasure, clip)
            badges = [badge_of(item.stored.path.name, item.stored.manifest) for item in erasure]
            text = "\n\n".join(f"{_described(item)}\n{_blocks(item, loaded)}" for item in erasure)
            return io.NodeOutput(text, ui={"erasure": badges, "text": [text]})


def _described(item: Item) -> str:
    changes, manifest = item.stored.changes, item.stored.manifest
    ranks = sorted({delta.rank for delta in changes.values() if isinstance(delta, LowRankDelta)})
    rows = {
        "file": item.stored.path.name,
        "strength": f"{item.unet:g}, text encoder {item.text:g}",
        "changes": f"{len(changes)} layers, " + (f"low rank {', '.join(map(str, ranks))}" if ranks else "dense"),
    }
    if manifest is None:
        rows["manifest"] = "none: a plain LoRA that was not made by this software"
    else:
        rows |= {
            "erased": ", ".join(manifest.words),
            "instead": manifest.alternative or "(not chosen)",
            "kept": f"{len(manifest.keep)} prompts",
            "method": f"{manifest.method} ({manifest.method_status})",
            "steps": str(manifest.steps_done),
            "settings": _settings(manifest),
            "base": f"{manifest.family}, {manifest.base_fingerprint[:12]}",
            "stored as": f"{manifest.dtype}, relative error {manifest.storage_error:.1e}",
            "measured": str(manifest.measured) if manifest.measured else "nothing yet",
        }
        rows |= {"missing": missing(manifest)} if missing(manifest) else {}
    return "\n".join(f"{name}: {value}" for name, value in rows.items())


def _blocks(item: Item, model: ComfyModel | None) -> str:
    """The blocks that an erasure changes, as patterns for block weights, with the layers in each. Files name layers in
    their own way, so that it takes a model to know them."""
    if model is None:
        return "blocks: connect MODEL to list them, as block_weights names them"
    names = [BLOCK.split(name)[0] for name in bound(item.stored, model, True, torch.device("cpu"))]
    return "\n".join(["blocks:", *(f"{name}.* ({names.count(name)} layers)" for name in dict.fromkeys(names))])


def _settings(manifest: Manifest) -> str:
    """The settings on one line; what a conversion left out has a line of its own."""
    shown = {name: value for name, value in manifest.settings.items() if name not in missing_of({})}
    texts = [f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in shown.items()]
    return ", ".join(text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in texts) or "none told"


NODES = [LoadErasure, ApplyErasure, StackErasures, SaveErasure, InspectErasure]
