"""Canonical (diffusers-style) names for the layers of a UNet that a host runs in the original (LDM) layout."""

from __future__ import annotations

import re
from collections.abc import Iterable

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def canonical_unet_names(ldm_paths: Iterable[str]) -> dict[str, str]:
    """Map LDM module paths to canonical paths without ``unet.``; the inverse of ``naming.ldm_paths``.

    Args:
        ldm_paths: *all* layer paths of one UNet: the number of blocks of a level is read off them.
    """
    paths = list(ldm_paths)
    downsamplers = [int(m[1]) for path in paths if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op", path))]
    blocks = [int(m[1]) for path in paths if (m := re.match(r"input_blocks\.(\d+)\.", path))]
    per_level = min(downsamplers, default=max(blocks, default=0) + 1) - 1
    names = {path: _name(path, max(1, per_level)) for path in paths}
    return {path: name for path, name in names.items() if name is not None}


def _name(path: str, per_level: int) -> str | None:
    if path in _TOP:
        return _TOP[path]
    if m := re.match(r"middle_block\.([012])\.(.+)", path):
        return f"mid_block.attentions.0.{m[2]}" if m[1] == "1" else _resnet("mid_block", int(m[1]) // 2, m[2])
    if m := re.match(r"input_blocks\.(\d+)\.([01])\.(.+)", path):
        level, place = divmod(int(m[1]) - 1, per_level + 1)
        if m[3] == "op":
            return f"down_blocks.{level}.downsamplers.0.conv"
        return _block(f"down_blocks.{level}", place, m[2] == "1", m[3])
    if m := re.match(r"output_blocks\.(\d+)\.([012])\.(.+)", path):
        level, place = divmod(int(m[1]), per_level + 1)
        if m[3] == "conv":
            return f"up_blocks.{level}.upsamplers.0.conv"
        return _block(f"up_blocks.{level}", place, m[2] == "1", m[3])
    return None


def _block(block: str, place: int, attention: bool, rest: str) -> str | None:
    return f"{block}.attentions.{place}.{rest}" if attention else _resnet(block, place, rest)


def _resnet(block: str, place: int, rest: str) -> str | None:
    part = _RESNET.get(rest)
    return None if part is None else f"{block}.resnets.{place}.{part}"
