"""Convert and Bake: an erasure in another form, and a checkpoint with erasures built in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..erasure_core.combining import LOSS, converted, stored_form
from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.hosts.comfyui_patches import Strengths
from .erasures import apply_stack, check_clip
from .host import CATEGORY, PREFIX, ErasureType, Stack, working

FORMS = ("low-rank", "dense")


class ConvertErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Convert",
            display_name="Convert Erasure",
            category=CATEGORY,
            description="An erasure in another form. Low rank loads in every UI as a LoRA; dense is exact and large.",
            inputs=[
                ErasureType.Input("erasure", tooltip="One erasure or a stack; each is converted."),
                io.Model.Input("model", tooltip="The model it was made on."),
                io.Combo.Input("form", options=list(FORMS), default=FORMS[0], tooltip="low-rank or dense."),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    control_after_generate=False,
                    tooltip="Largest rank of each layer; 0 takes the least that is exact.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Needed where the erasure changes the text encoder."),
            ],
            outputs=[
                ErasureType.Output("converted", display_name="erasure"),
                io.Float.Output("error", display_name="error", tooltip="Relative error of the conversion."),
            ],
        )

    @classmethod
    def execute(cls, erasure: Stack, model: Any, form: str, rank: int, clip: Any = None) -> io.NodeOutput:
        with working():
            check_clip(erasure, clip)
            loaded, items, worst = ComfyModel(model, clip), [], 0.0
            for item in erasure:
                new = converted(loaded, item.stored, form, rank, item.noise)
                worst = max(worst, new.manifest.settings[LOSS])
                stored = stored_form(loaded, new.deltas, new.manifest, item.stored.path)
                items.append(replace(item, stored=stored, is_file=False))
            return io.NodeOutput(tuple(items), worst)


class BakeErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Bake",
            display_name="Bake Erasure into Checkpoint",
            category=CATEGORY,
            description="Writes a whole checkpoint with erasures built in, by the host's own saving.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that the erasure was made on; LoRAs before it are baked in too."
                ),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="Written into the checkpoint as it is."),
                ErasureType.Input("erasure", tooltip="What is built in: one erasure or a stack, at its strengths."),
                io.String.Input("filename_prefix", default="checkpoints/erased", tooltip="Below the output folder."),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any, erasure: Stack, filename_prefix: str) -> io.NodeOutput:
        from comfy_extras.nodes_model_merging import save_checkpoint

        with working():
            ComfyModel(model, clip).refuse_unseen()  # the host saves what is on the weights and nothing else
            model, clip = apply_stack(model, clip, erasure, Strengths())
        # The host's saving works in the host's own inference mode.
        save_checkpoint(
            model,
            clip=clip,
            vae=vae,
            filename_prefix=filename_prefix,
            output_dir=folder_paths.get_output_directory(),
            prompt=cls.hidden.prompt,
            extra_pnginfo=cls.hidden.extra_pnginfo,
        )
        return io.NodeOutput()


NODES = [ConvertErasure, BakeErasure]
