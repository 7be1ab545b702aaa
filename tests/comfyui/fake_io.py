"""The schema classes of the oldest supported ComfyUI (0.3.64), as strict: an unknown keyword is a TypeError."""

from __future__ import annotations

import types
from typing import Any

PLAIN = ("id", "display_name", "optional", "tooltip", "lazy", "extra_dict")
WIDGET = (*PLAIN[:5], "default", "socketless", "force_input")
KEYWORDS = {
    "Boolean": (*WIDGET, "label_on", "label_off"),
    "Int": (*WIDGET, "min", "max", "step", "control_after_generate", "display_mode"),
    "Float": (*WIDGET, "min", "max", "step", "round", "display_mode"),
    "String": (*WIDGET, "multiline", "placeholder", "dynamic_prompts"),
    "Combo": (
        *PLAIN[:5],
        "default",
        "options",
        "control_after_generate",
        "upload",
        "image_folder",
        "remote",
        "socketless",
    ),
}
LINKS = {
    "Model": "MODEL",
    "Clip": "CLIP",
    "Vae": "VAE",
    "ClipVision": "CLIP_VISION",
    "Image": "IMAGE",
    "LoraModel": "LORA_MODEL",
    "LossMap": "LOSS_MAP",
}
SCHEMA = (
    *("node_id", "display_name", "category", "inputs", "outputs", "hidden", "description", "is_input_list"),
    *("is_output_node", "is_deprecated", "is_experimental", "is_api_node", "not_idempotent", "enable_expand"),
)


def _record(io_type: str, allowed: tuple[str, ...]) -> type:
    class Record:
        def __init__(self, id: str | None = None, **named: Any) -> None:
            unknown = set(named) - set(allowed)
            if unknown:
                raise TypeError(f"{io_type} has no keyword {unknown.pop()!r}")
            self.id, self.io_type = id, io_type
            self.__dict__ |= {"optional": False, "default": None, "options": None, "extra_dict": {}, **named}

    return Record


def _kind(io_type: str, inputs: tuple[str, ...] = PLAIN) -> type:
    outputs = ("id", "display_name", "tooltip", "is_output_list")
    return type(io_type, (), {"Input": _record(io_type, inputs), "Output": _record(io_type, outputs)})


class Schema:
    def __init__(self, **named: Any) -> None:
        unknown = set(named) - set(SCHEMA)
        if unknown:
            raise TypeError(f"Schema has no keyword {unknown.pop()!r}")
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.hidden: list[Any] = []
        self.is_output_node, self.description = False, ""
        self.__dict__ |= named
        ids = [each.id for each in (*self.inputs, *self.outputs)]
        if len(ids) != len(set(ids)):
            raise ValueError("Ids must be unique between inputs and outputs")


class ComfyNode:
    hidden = types.SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=None)


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class PreviewImage:
    def __init__(self, image: Any, cls: Any = None) -> None:
        self.image = image

    def as_dict(self) -> dict[str, Any]:
        return {"images": [{"filename": "x.png"}] * len(self.image)}


def module() -> types.ModuleType:
    io = types.ModuleType("io")
    vars(io).update({name: _kind(name.upper(), allowed) for name, allowed in KEYWORDS.items()})
    vars(io).update({name: _kind(io_type) for name, io_type in LINKS.items()})
    vars(io).update({"Custom": _kind, "Schema": Schema, "ComfyNode": ComfyNode, "NodeOutput": NodeOutput})
    vars(io).update({"Hidden": types.SimpleNamespace(unique_id="u", prompt="p", extra_pnginfo="e")})
    latest = types.ModuleType("comfy_api.latest")
    vars(latest).update({"io": io, "ui": types.SimpleNamespace(PreviewImage=PreviewImage), "ComfyExtension": object})
    return latest
