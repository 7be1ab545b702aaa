"""Which layers an erasure changes, by the field's names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .errors import InvalidSettings

LAYER_GROUPS: dict[str, str] = {
    "cross-attention-kv": "keys and values of the cross-attention: where the prompt enters the picture",
    "cross-attention": "all of the cross-attention (ESD-x)",
    "self-attention": "the self-attention",
    "all-but-cross-attention": "everything except cross-attention (ESD-u), for concepts that need no word",
    "full": "the whole diffusion network",
    "text-encoder": "attention and feed-forward layers of the text encoders",
}


def is_text(name: str) -> bool:
    """Whether a canonical layer name belongs to a text encoder."""
    return name.startswith("text_encoder")


def reads_context(name: str) -> bool:
    """Whether a layer reads the encoded prompt: the keys and values of cross-attention."""
    return ".attn2.to_k" in name or ".attn2.to_v" in name


def _belongs(name: str, group: str) -> bool:
    if is_text(name):
        return group == "text-encoder" and ".layers." in name
    cross = ".attn2." in name
    return {
        "cross-attention-kv": reads_context(name),
        "cross-attention": cross,
        "self-attention": ".attn1." in name,
        "all-but-cross-attention": not cross,
        "full": True,
        "text-encoder": False,
    }[group]


def select(layers: Mapping[str, nn.Module], groups: str) -> dict[str, nn.Module]:
    """The layers of one group or of several joined by "+", for example ``"text-encoder+cross-attention-kv"``.

    Raises:
        InvalidSettings: an unknown group, or a model that has no such layer.
    """
    names = groups.split("+")
    unknown = [group for group in names if group not in LAYER_GROUPS]
    if unknown:
        raise InvalidSettings(f"Layers {unknown[0]!r} are unknown; choose from {', '.join(LAYER_GROUPS)}.")
    chosen = {name: layer for name, layer in layers.items() if any(_belongs(name, group) for group in names)}
    if not chosen:
        raise InvalidSettings(f"This model has no layers of the kind {groups!r}; choose other layers.")
    return dict(sorted(chosen.items()))
