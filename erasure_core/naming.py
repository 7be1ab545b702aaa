"""Layer names: from our canonical (diffusers-style) names to those that every host loads, and back.

Files carry kohya names: ``lora_unet_`` or ``lora_te_`` and the module path with underscores. SD1.x and SD2.x low-rank
files use diffusers paths, SDXL files and all dense files use the paths of the original implementation (LDM).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TEXT_PREFIX = {"sd1": {"text_encoder": "lora_te"}, "sd2": {"text_encoder": "lora_te"}}
SDXL_TEXT_PREFIX = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _inside(kind: str, rest: str) -> str:
    """The path inside a residual block or a transformer; only the former's parts have other names."""
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def _count(names: Iterable[str], pattern: str) -> int:
    return len({m[0] for name in names if (m := re.match(pattern, name))})


def ldm_paths(unet_layers: Iterable[str]) -> dict[str, str]:
    """Map UNet paths in diffusers' naming (without ``unet.``) to LDM's, for any number of levels and blocks.

    The counts are read off the names themselves, so that the map needs no configuration. Layers that the original
    implementation does not have are left out.
    """
    names = list(unet_layers)
    per_level = max(1, _count(names, r"down_blocks\.0\.resnets\.\d+"))
    with_attention = {m[1] for name in names if (m := re.match(r"(up_blocks\.\d+)\.attentions", name))}
    paths = {name: _ldm_path(name, per_level, with_attention) for name in names}
    return {name: path for name, path in paths.items() if path is not None}


def _ldm_path(name: str, per_level: int, with_attention: set[str]) -> str | None:
    if name in _TOP:
        return _TOP[name]
    if m := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        place = 1 if m[1] == "attentions" else 2 * int(m[2])
        return f"middle_block.{place}.{_inside(m[1], m[3])}"
    if m := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = 1 + int(m[1]) * (per_level + 1) + int(m[3])
        return f"input_blocks.{block}.{int(m[2] == 'attentions')}.{_inside(m[2], m[4])}"
    if m := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        return f"input_blocks.{(int(m[1]) + 1) * (per_level + 1)}.0.op"
    if m := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        block = int(m[1]) * (per_level + 1) + int(m[3])
        return f"output_blocks.{block}.{int(m[2] == 'attentions')}.{_inside(m[2], m[4])}"
    if m := re.match(r"(up_blocks\.(\d+))\.upsamplers\.0\.conv", name):
        block = int(m[2]) * (per_level + 1) + per_level
        return f"output_blocks.{block}.{2 if m[1] in with_attention else 1}.conv"
    return None


def file_names(layers: Iterable[str], family: str, dense: bool = False) -> dict[str, str]:
    """Map canonical layer names to the module names used in files of a family; layers without one are left out.

    Args:
        layers: *all* canonical names of a model: block counts are read off them.
        family: ``sd1``, ``sd2`` or ``sdxl``.
        dense: whether the file holds dense changes, which need LDM names in every family.
    """
    names = list(layers)
    unet = [name.removeprefix("unet.") for name in names if name.startswith("unet.")]
    paths = ldm_paths(unet) if dense or family == "sdxl" else {path: path for path in unet}
    result = {f"unet.{path}": "lora_unet_" + target.replace(".", "_") for path, target in paths.items()}
    prefixes = SDXL_TEXT_PREFIX if family == "sdxl" else TEXT_PREFIX.get(family, {"text_encoder": "lora_te"})
    for name in names:
        encoder, _, path = name.partition(".")
        if encoder in prefixes:
            result[name] = f"{prefixes[encoder]}_{path.replace('.', '_')}"
    return result
