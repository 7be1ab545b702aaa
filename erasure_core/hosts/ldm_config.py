"""The architecture of a checkpoint in the original (LDM) layout, read off the shapes of its tensors.

Families are told apart by layout, not by file name: the text encoders of SD1.x (CLIP), SD2.x (open_clip) and SDXL
(both) have different keys. What shapes do not say follows the family: SD1.x has 8 heads, the later ones have heads of
64 channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Size

from ..errors import ModelError
from .ldm_keys import CLIP_SD1, CLIP_SDXL, OPEN_CLIP_SD2, OPEN_CLIP_SDXL, UNET, VAE

Shapes = Mapping[str, Size]

HEAD_WIDTH = 64
MAX_BLOCKS = 200
LATENT_SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


def family_of(shapes: Shapes) -> str:
    """``sd1``, ``sd2`` or ``sdxl``.

    Raises:
        ModelError: another kind of file; the message says what it looks like.
    """
    if shapes and all(name.startswith("lora_") for name in shapes):
        raise ModelError("it is an erasure or another LoRA, to be used with the model it was made for")
    if f"{UNET}input_blocks.0.0.weight" not in shapes:
        raise ModelError("it holds no Stable Diffusion UNet in the original layout (model.diffusion_model.…)")
    if shapes[f"{UNET}input_blocks.0.0.weight"][1] != 4:
        raise ModelError("its UNet does not read 4 channels: inpainting and depth models are not supported")
    if f"{OPEN_CLIP_SDXL}token_embedding.weight" in shapes:
        if f"{CLIP_SDXL}text_model.embeddings.token_embedding.weight" not in shapes:
            raise ModelError("it is an SDXL checkpoint without its first text encoder")
        return "sdxl"
    if f"{OPEN_CLIP_SD2}token_embedding.weight" in shapes:
        return "sd2"
    if f"{CLIP_SD1}text_model.embeddings.token_embedding.weight" in shapes:
        return "sd1"
    raise ModelError("it holds no text encoder of a known kind (SD1.x, SD2.x or SDXL)")


def count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand at the group of ``pattern`` in the keys.

    Raises:
        ModelError: more than any model has: building them would take hours.
    """
    found = len({m[1] for key in shapes if (m := re.match(pattern, key))})
    if found > MAX_BLOCKS:
        raise ModelError(f"it has {found} blocks or layers of one kind; more than {MAX_BLOCKS} are not accepted")
    return found


def _depth(shapes: Shapes, block: str) -> int:
    return count(shapes, re.escape(f"{UNET}{block}.1.transformer_blocks.") + r"(\d+)\.")


def _levels(shapes: Shapes) -> list[list[tuple[int, int]]]:
    """For each resolution the channels and transformer depth of its residual blocks on the way down."""
    levels: list[list[tuple[int, int]]] = [[]]
    for i in range(1, count(shapes, re.escape(UNET) + r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{i}"
        if f"{UNET}{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append((shapes[f"{UNET}{block}.0.in_layers.2.weight"][0], _depth(shapes, block)))
    return levels


def unet_config(shapes: Shapes, family: str) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel``."""
    levels = _levels(shapes)
    channels = [level[0][0] for level in levels]
    depths = [level[0][1] for level in levels]
    to_k = next(key for key in shapes if key.startswith(UNET) and key.endswith(".attn2.to_k.weight"))
    config: dict[str, Any] = {
        "in_channels": shapes[f"{UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [max(1, depth) for depth in depths],
        "cross_attention_dim": shapes[to_k][1],
        # diffusers' name is a historical mistake: it is the number of heads.
        "attention_head_dim": 8 if family == "sd1" else [max(1, c // HEAD_WIDTH) for c in channels],
        "use_linear_projection": family != "sd1",
    }
    if family == "sdxl":
        vector = shapes[f"{UNET}label_emb.0.0.weight"][1]
        pooled = shapes[f"{OPEN_CLIP_SDXL}text_projection"][1]
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (vector - pooled) // 6,
            "projection_class_embeddings_input_dim": vector,
        }
    return config


def vae_config(shapes: Shapes, family: str) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``."""
    levels = count(shapes, re.escape(VAE) + r"encoder\.down\.(\d+)\.")
    channels = [shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    return {
        "block_out_channels": channels,
        "layers_per_block": count(shapes, re.escape(VAE) + r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": LATENT_SCALE[family],
    }


def text_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Arguments of ``CLIPTextConfig`` for the text encoder under a prefix, in either layout."""
    is_open_clip = f"{prefix}token_embedding.weight" in shapes
    top = prefix if is_open_clip else f"{prefix}text_model.embeddings."
    vocabulary, width = shapes[f"{top}token_embedding.weight"]
    position = f"{prefix}positional_embedding" if is_open_clip else f"{top}position_embedding.weight"
    layers = r"transformer\.resblocks\.(\d+)\." if is_open_clip else r"text_model\.encoder\.layers\.(\d+)\."
    first = "transformer.resblocks.0.mlp.c_fc" if is_open_clip else "text_model.encoder.layers.0.mlp.fc1"
    projection = shapes.get(f"{prefix}text_projection")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}{first}.weight"][0],
        "num_hidden_layers": count(shapes, re.escape(prefix) + layers),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": shapes[position][0],
        "projection_dim": projection[1] if projection is not None else width,
        "hidden_act": "gelu" if is_open_clip else "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
