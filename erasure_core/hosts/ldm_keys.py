"""Key names of Stable Diffusion checkpoints in the original (LDM) layout, to and from diffusers' and transformers'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..naming import ldm_paths

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_SD1 = "cond_stage_model.transformer."
OPEN_CLIP_SD2 = "cond_stage_model.model."
CLIP_SDXL, OPEN_CLIP_SDXL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

_VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "conv_shortcut": "nin_shortcut",
}
_OPEN_CLIP_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP_TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def unet_keys(parameters: Iterable[str]) -> dict[str, str]:
    """diffusers' UNet parameter names to checkpoint keys."""
    names = list(parameters)
    paths = ldm_paths({name.rpartition(".")[0] for name in names})
    return {name: f"{UNET}{paths[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" for name in names}


def vae_keys(parameters: Iterable[str], levels: int) -> dict[str, str]:
    """diffusers' autoencoder parameter names to checkpoint keys; ``levels`` is its number of resolutions."""
    return {name: VAE + _vae_key(name, levels) for name in parameters}


def _vae_key(name: str, levels: int) -> str:
    for ours, theirs in _VAE_PARTS.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", r"down.\1.downsample.conv", name)
    return re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", lambda m: _vae_up(m, levels), name)


def _vae_up(found: re.Match[str], levels: int) -> str:
    part = "block" if found[2] == "resnets" else "upsample"
    return f"up.{levels - 1 - int(found[1])}.{part}"


def as_vae_tensor(key: str, tensor: Tensor) -> Tensor:
    """The middle attention's projections are 1x1 convolutions in checkpoints, linear layers in diffusers."""
    return tensor.flatten(1) if ".mid.attn_1." in key and tensor.dim() == 4 else tensor


def as_checkpoint_vae_tensor(key: str, tensor: Tensor) -> Tensor:
    """Inverse of ``as_vae_tensor``."""
    return tensor[:, :, None, None] if ".mid.attn_1." in key and tensor.dim() == 2 else tensor


def _open_clip_layer(found: re.Match[str]) -> str:
    return f"transformer.resblocks.{found[1]}.{_OPEN_CLIP_PARTS[found[2]]}"


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers text encoder's tensors (names with ``text_model.``) in open_clip's layout."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "text_projection.weight":
            result["text_projection"] = tensor.T.contiguous()
        elif name in _OPEN_CLIP_TOP:
            result[_OPEN_CLIP_TOP[name]] = tensor
        elif m := re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            joined = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            result[f"transformer.resblocks.{m[1]}.attn.in_proj_{m[2]}"] = torch.cat(joined)
        elif ".k_proj." not in name and ".v_proj." not in name:
            pattern = r"text_model\.encoder\.layers\.(\d+)\.(.+?)(?=\.(?:weight|bias)$)"
            result[re.sub(pattern, _open_clip_layer, name)] = tensor
    return result


def from_open_clip(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The first ``layers`` layers of an open_clip text side, by transformers' names. Inverse of ``to_open_clip``."""
    result = {ours: state[theirs] for ours, theirs in _OPEN_CLIP_TOP.items()}
    if "text_projection" in state:
        result["text_projection.weight"] = state["text_projection"].T.contiguous()
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for leaf in ("weight", "bias"):
            for our_part, their_part in _OPEN_CLIP_PARTS.items():
                result[f"{ours}{our_part}.{leaf}"] = state[f"{theirs}{their_part}.{leaf}"]
            parts = state[f"{theirs}attn.in_proj_{leaf}"].chunk(3)
            for part, tensor in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                result[f"{ours}self_attn.{part}.{leaf}"] = tensor.contiguous()
    return result
