"""SD1.5, SD2.1 (v-prediction) and SDXL at their true sizes, or shrunk for tests, with seeded random weights.

Time, memory, names and numerics do not depend on what the weights say, so nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.hosts.ldm_checkpoint import TOKENIZER
from erasure_core.layers import select
from erasure_core.model import LoadedModel
from erasure_core.schedule import NoiseSchedule

FAMILIES = ("sd15", "sd21", "sdxl")
SIDES = {"sd15": 512, "sd21": 768, "sdxl": 1024}
"""Pixels along each side of the pictures that a family was made for."""
ATTENDING, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
TRANSFORMERS = "transformers"
"""All layers of the diffusion network's transformers, projections and feed-forwards too: what LECO trains."""
BLOCK = 4_194_301
"""Random numbers drawn once and laid over all weights. A prime, so that rows of a weight do not repeat."""

_DOWN = [ATTENDING, ATTENDING, ATTENDING, PLAIN]
_WIDE = [320, 640, 1280, 1280]
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": _WIDE, "down_block_types": _DOWN, "attention_head_dim": 8, "depth": [1, 1, 1, 1]},
    "sd21": {
        "block_out_channels": _WIDE,
        "down_block_types": _DOWN,
        "attention_head_dim": [5, 10, 20, 20],
        "depth": [1, 1, 1, 1],
        "use_linear_projection": True,
    },
    "sdxl": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [PLAIN, ATTENDING, ATTENDING],
        "attention_head_dim": [5, 10, 20],
        "depth": [1, 2, 10],
        "use_linear_projection": True,
    },
}
_CLIP_L, _CLIP_H, _CLIP_G = (768, 3072, 12, 12), (1024, 4096, 23, 16), (1280, 5120, 32, 20)
"""Width, feed-forward width, layers and heads of the text encoders; SD2 leaves out CLIP-H's last layer."""
_TEXTS = {"sd15": [_CLIP_L], "sd21": [_CLIP_H], "sdxl": [_CLIP_L, _CLIP_G]}


def unet_config(family: str, side: int, tiny: bool = False) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel`` for pictures of ``side`` pixels; ``tiny`` has a tenth of the channels."""
    config = dict(_UNETS[family])
    config["transformer_layers_per_block"] = depth = config.pop("depth")
    config["up_block_types"] = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    widths = text_widths(family, tiny)
    config |= {"sample_size": side // 8, "cross_attention_dim": sum(widths)}
    if tiny:
        config["block_out_channels"] = [channels // 10 for channels in config["block_out_channels"]]
        config["transformer_layers_per_block"] = [min(2, layers) for layers in depth]
        if family != "sd15":
            config["attention_head_dim"] = [max(1, channels // 32) for channels in config["block_out_channels"]]
    if family == "sdxl":
        pooled = widths[-1]
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config["projection_class_embeddings_input_dim"] = pooled + 6 * 256
    return config


def text_widths(family: str, tiny: bool = False) -> list[int]:
    """The width of each text encoder's output."""
    return [(_tiny_text(text) if tiny else text)[0] for text in _TEXTS[family]]


def _tiny_text(text: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return 64, 128, 2, 1


def _text_config(text: tuple[int, int, int, int], vocabulary: int, act: str) -> Any:
    from transformers import CLIPTextConfig

    width, inner, layers, heads = text
    return CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=width, hidden_act=act,
        bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip


def build(
    family: str,
    side: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tiny: bool = False,
) -> DiffusersModel:
    """A model of a family, ready to be erased from.

    Args:
        family: one of ``FAMILIES``.
        side: pixels along each side of the pictures; by default those of the family.
        device: where it lives.
        dtype: of its weights.
        seed: of the random weights.
        tiny: the same layout with a tenth of the channels, two text layers and at most two transformers a block.
    """
    with torch.device("meta"):
        parts = modules(family, side or SIDES[family], dtype, tiny)
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed)).repeat(2).to(device)
    for module in parts:
        module.to_empty(device=device)
        fill(module, numbers)
        module.eval().requires_grad_(False)
    return DiffusersModel(parts[0], parts[1:], _tokenizers(family), noise_schedule(family))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors are of this type inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def modules(family: str, side: int, dtype: torch.dtype, tiny: bool = False) -> list[nn.Module]:
    """The diffusion network and the text encoders, as their libraries make them."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = len(_tokenizers(family)[0])
    with default_dtype(dtype):
        made: list[nn.Module] = [UNet2DConditionModel(**unet_config(family, side, tiny))]
        for place, text in enumerate(_TEXTS[family]):
            act = "gelu" if family == "sd21" or place else "quick_gelu"
            kind = CLIPTextModelWithProjection if place else CLIPTextModel
            made.append(kind(_text_config(_tiny_text(text) if tiny else text, vocabulary, act)))
    return made


def _tokenizers(family: str) -> list[Any]:
    from transformers import CLIPTokenizer

    pads = {"sd15": [None], "sd21": ["!"], "sdxl": [None, "!"]}[family]
    return [CLIPTokenizer.from_pretrained(TOKENIZER, **({"pad_token": pad} if pad else {})) for pad in pads]


def noise_schedule(family: str) -> NoiseSchedule:
    """Stable Diffusion's schedule; SD2.1 predicts v."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    prediction = "v_prediction" if family == "sd21" else "epsilon"
    return NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0), prediction)


def trained_layers(model: LoadedModel, group: str) -> dict[str, nn.Module]:
    """The layers of one of the library's groups, or of ``TRANSFORMERS``."""
    if group != TRANSFORMERS:
        return select(model.layers(), group)
    return {name: layer for name, layer in select(model.layers(), "full").items() if ".attentions." in name}


@torch.no_grad()
def fill(module: nn.Module, numbers: Tensor) -> None:
    """Weights of torch's own default spread, 1 / sqrt(3 fan-in); norms at one, biases at zero.

    Args:
        module: what to fill.
        numbers: ``BLOCK`` random numbers, twice in a row.

    Raises:
        ValueError: a buffer whose content is not known.
    """
    start = 0
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = parameter[0].numel() if "embedding" not in name else parameter.shape[-1]
        for piece in parameter.view(-1).split(BLOCK):
            piece.copy_(numbers[start : start + len(piece)]).div_((3 * fan_in) ** 0.5)
            start = (start + len(piece)) % BLOCK
    for name, buffer in module.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"the buffer {name} has no known content")
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
