"""The Purify Image node: paint a given picture again without a concept."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..erasure_core.hosts.comfyui import ComfyModel
from ..erasure_core.purify import caption_misses, check_captions, painted_size, purify
from .host import CATEGORY, PREFIX, ErasureType, Stack, as_image, check_pictures, fit, say, working
from .subjects import erasures_of
from .training_progress import BarProgress


class PurifyImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=f"{PREFIX}Purify",
            display_name="Purify Image",
            category=CATEGORY,
            description="Follows a picture back to noise and paints it again without the concept, keeping the rest.",
            inputs=[
                io.Model.Input("model", tooltip="The model, with the erasure beside it; or a model with it applied."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="Reads the picture and paints it again."),
                io.Image.Input("image", tooltip="One picture or several; scaled to a size that the model paints."),
                io.String.Input(
                    "caption",
                    multiline=True,
                    default="",
                    placeholder="a town at night by Vincent van Gogh",
                    tooltip="What the picture shows, in words that say the concept.",
                ),
                io.Float.Input(
                    "share",
                    default=0.8,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to go back to noise. Less keeps more of the picture, and more of the concept.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    control_after_generate=False,
                    tooltip="Sampling steps of the whole way; as many lead back.",
                ),
                io.Float.Input(
                    "guidance", default=5.0, min=0.0, max=30.0, step=0.5, tooltip="Guidance scale towards the caption."
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="The picture is scaled to the area of a square of so many pixels; 0 takes what the model "
                    "was made for. Its proportions stay.",
                ),
                ErasureType.Input(
                    "erasure", optional=True, tooltip="What is taken out; leave it free if the model carries it."
                ),
            ],
            outputs=[io.Image.Output("purified", display_name="image")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, image: torch.Tensor, caption: str, erasure: Stack = (), **how: Any
    ) -> io.NodeOutput:
        with working():
            check_captions([caption])  # before a host moves networks for nothing
            check_pictures(image)
            loaded = ComfyModel(model, clip, vae, how["resolution"])
            erasures = erasures_of(loaded, erasure)
            progress = BarProgress(cls.hidden.unique_id)
            clean = []
            # One at a time: a batch of large pictures would not fit beside the model.
            for picture in fit(image, painted_size(loaded, *image.shape[1:3])):
                latents = loaded.latents_of(picture[None])
                with loaded.trainable():
                    steps, guidance = how["steps"], how["guidance"]
                    again = purify(loaded, latents, [caption], erasures, steps, guidance, how["share"], progress)
                clean.append(loaded.decode(again))
            if told := caption_misses(caption, (item.stored.manifest for item in erasure)):
                say(cls.hidden.unique_id, told)
            return io.NodeOutput(as_image(torch.cat(clean)))


NODES = [PurifyImage]
