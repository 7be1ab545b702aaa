"""How well the bundled IP-Adapter tells the model what a picture shows: painted from pictures alone, with no word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erasure_core import sample
from erasure_core.hosts.clip_vision import ClipVision
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.image_prompt import ImageAdapter, ImageBranch, ImagePrompted
from erasure_core.model import Conditioning

from .figures import Figure, share_of
from .judge import Judge, load_judge, sees
from .painting import GUIDANCE, STEPS, load_model
from .scene import Scene
from .tokens import MODEL_DIR
from .training.data import scenes

ADAPTER = MODEL_DIR / "ip_adapter.safetensors"
CLIP_DIR = MODEL_DIR / "image_encoder"
SEED = 77
"""Of the pictures that are shown: none of them was trained on."""
BATCH = 50


def embedded(pictures: Tensor) -> Tensor:
    """What the bundled CLIP makes of pictures [B, 3, 64, 64], [B, 64]."""
    vision = ClipVision.load(CLIP_DIR)
    return torch.cat([vision(some) for some in pictures.split(BATCH)])


def tokens_of(pictures: Tensor, adapter: ImageAdapter) -> Tensor:
    """Picture tokens [B, T, D] of pictures [B, 3, 64, 64], as the adapter makes them."""
    assert adapter.projector is not None
    return adapter.projector(embedded(pictures))


class _ByPicture(ImagePrompted):
    """Its prompts are the numbers of pictures; the empty one is no picture and no word."""

    def __init__(self, model: DiffusersModel, branch: ImageBranch, tokens: Tensor) -> None:
        super().__init__(model, branch)
        self.shown = torch.cat([tokens, torch.zeros_like(tokens[:1])])

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        nothing = self.plain.encode([""])[[0] * len(prompts)]
        rows = [int(prompt) if prompt else -1 for prompt in prompts]
        return Conditioning(nothing.context, nothing.ends, nothing.pooled, self.shown[rows])


def paint_by_pictures(model: DiffusersModel, adapter: ImageAdapter, pictures: Tensor) -> Tensor:
    """One picture by each of the given ones, uint8 [B, 3, 64, 64] both."""
    branch, painted = ImageBranch(adapter, model), []
    prompted = _ByPicture(model, branch, tokens_of(pictures, adapter))
    with branch.attached(model.layers()):
        for start in range(0, len(pictures), BATCH):
            numbers = range(start, min(start + BATCH, len(pictures)))
            latents = sample(prompted, [str(number) for number in numbers], numbers, STEPS, GUIDANCE)
            painted.append(model.decode(latents))
    return torch.cat(painted)


def adapter_figures(
    model: DiffusersModel, judge: Judge, adapter: ImageAdapter, drawn: Sequence[Scene], pictures: Tensor
) -> list[Figure]:
    """How often what a picture shows is in the one that is painted by it.

    Args:
        model, judge, adapter: the bundled ones.
        drawn: what is in the pictures, one thing in each.
        pictures: uint8 [B, 3, 64, 64].
    """
    verdicts = judge(paint_by_pictures(model, adapter, pictures))
    pairs = [(scene.things[0], scene, verdict) for scene, verdict in zip(drawn, verdicts, strict=True)]
    return [
        share_of("shown: object", (sees(v, thing.object) for thing, _, v in pairs)),
        share_of("shown: colour", (sees(v, thing.colour) for thing, _, v in pairs)),
        share_of("shown: style", (sees(v, thing.style) for thing, _, v in pairs)),
        share_of("shown: background", (v.background == scene.background for _, scene, v in pairs)),
        share_of("shown: garbage", (v.garbage for _, _, v in pairs), error=True),
    ]


def report_adapter(count: int = 200) -> None:
    """Print the figures of the bundled adapter, over ``count`` fresh pictures of one thing."""
    drawn, pictures = scenes(SEED, 2 * count)
    single = [i for i, scene in enumerate(drawn) if len(scene.things) == 1][:count]
    model = load_model()
    adapter = ImageAdapter.read(ADAPTER, model)
    figures = adapter_figures(model, load_judge(), adapter, [drawn[i] for i in single], pictures[single])
    print(*(figure.line() for figure in figures), sep="\n")
