"""Erasing in A1111: whole Parameter objects are exchanged, and the old ones put back to restore.

A1111's Lora extension merges LoRAs into a weight at the layer's next forward, keeps a backup and leaves the merge until
a differing forward. So before a parameter is exchanged the merge is taken back and the extension's record is cleared;
at the next forward it merges onto whatever parameter it finds.

A switch to a checkpoint of the same architecture copies new weights into the same Parameter objects. Originals that
were kept are then of the old checkpoint and must be forgotten, not restored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ORIGINALS = "_concept_erasure_originals"
"""Where a module keeps its exchanged parameters."""
ASIDE = torch.device("cpu")
"""Where their numbers lie meanwhile, as those of the Lora extension's backups: SDXL's text encoders would take 1.5 GiB
of a card's memory twice."""


@dataclass(frozen=True)
class Exchange:
    """Args:
    original: the host's parameter.
    patched: ours, in its place.
    """

    original: nn.Parameter
    patched: nn.Parameter


def lora_module() -> Any:
    """The Lora extension's module, if it is one that merges lazily."""
    module = sys.modules.get("networks")
    names = ("network_restore_weights_from_backup", "network_reset_cached_weight", "load_networks")
    return module if module is not None and all(hasattr(module, name) for name in names) else None


@torch.no_grad()
def without_lora(owner: nn.Module) -> None:
    """Take a merged LoRA off a layer and make the extension forget it, so that it merges anew when it is wanted."""
    lora = lora_module()
    if lora is not None:
        lora.network_restore_weights_from_backup(owner)
        lora.network_reset_cached_weight(owner)


def _exchanges(module: nn.Module) -> dict[str, Exchange]:
    found = module.__dict__.get(ORIGINALS, {})
    assert isinstance(found, dict)
    return found


def exchanged(module: nn.Module, leaf: str) -> Exchange | None:
    """Our exchange of a parameter, if it is still in place."""
    found = _exchanges(module).get(leaf)
    return found if found is not None and module._parameters.get(leaf) is found.patched else None


def original_of(module: nn.Module, leaf: str) -> Tensor:
    """A parameter without our changes and without merged LoRAs."""
    mine = exchanged(module, leaf)
    if mine is not None:
        return mine.original
    backup = getattr(module, "network_weights_backup", None)
    if isinstance(backup, tuple):
        backup = backup[0]  # of an attention with joined weights
    if isinstance(backup, Tensor) and leaf in ("weight", "in_proj_weight"):
        return backup
    parameter = module._parameters[leaf]
    assert parameter is not None
    return parameter


@torch.no_grad()
def exchange(module: nn.Module, leaf: str, owner: nn.Module, change: Tensor) -> nn.Parameter:
    """Put ``original + change``, rounded once to the host's type, in a parameter's place; returns what is there now.

    Args:
        module: holds the parameter.
        leaf: its name.
        owner: the module on which the Lora extension keeps its state.
        change: float32, in the parameter's shape; it is overwritten.
    """
    without_lora(owner)
    restore(module, leaf)
    original = module._parameters[leaf]
    assert original is not None
    whole = change.to(original.device).add_(original.detach().float())
    patched = nn.Parameter(whole.to(original.dtype), requires_grad=original.requires_grad)
    module.__dict__.setdefault(ORIGINALS, {})[leaf] = Exchange(original, patched)
    module._parameters[leaf] = patched
    _put_aside(original)
    return patched


def _put_aside(parameter: nn.Parameter) -> None:
    if parameter.device != ASIDE:
        parameter.data = parameter.data.to(ASIDE)


def restore(module: nn.Module, leaf: str) -> None:
    """Put a parameter back; the caller has taken LoRAs off. Nothing happens if it was not exchanged."""
    mine = exchanged(module, leaf)
    if mine is not None:
        # It was put aside, or the host has moved the model while our parameter stood in.
        if mine.original.device != mine.patched.device:
            mine.original.data = mine.original.data.to(mine.patched.device)
        module._parameters[leaf] = mine.original
    _exchanges(module).pop(leaf, None)


def restore_all(root: nn.Module) -> None:
    """Take LoRAs and exchanges off every layer below ``root``."""
    for module in root.modules():
        if isinstance(module, nn.MultiheadAttention):
            without_lora(module)
            restore(module.out_proj, "weight")
            restore(module, "in_proj_weight")
        elif hasattr(module, "network_layer_name") or ORIGINALS in module.__dict__:
            without_lora(module)
            for leaf in list(_exchanges(module)):
                restore(module, leaf)


def forget_all(modules: Iterable[nn.Module]) -> None:
    """Drop kept originals without restoring them: the host has loaded other weights into the parameters."""
    for module in modules:
        module.__dict__.pop(ORIGINALS, None)
