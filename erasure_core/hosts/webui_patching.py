"""Putting erasures on a web UI's model for a generation, and knowing whether they are on it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from .webui import FLOATS, WebuiModel
from .webui_changes import Change, Effect, Expanding, changes_of
from .webui_hosts import ForgeHost, LdmHost
from .webui_slots import Applied, PatchView, Slot, key_of
from .webui_swap import exchange, exchanged, forget_all, restore, without_lora

MIN_EFFECT = 0.5
"""Least share of a change that must be found in the patched weights. 16 bits round far less away, 8 bits all of it."""
MIN_EFFECT_AMONG_OTHERS = 1e-3
"""As ``MIN_EFFECT`` where LoRAs change the same weights, maybe the other way."""


class PatchFailed(ModelError):
    """An erasure did not get onto the model; no picture may be made."""


@dataclass
class _State:
    """What was put on a model: the key of the request, the checkpoint it was for, and our parameters."""

    key: str
    checkpoint: str
    places: list[tuple[nn.Module, str, nn.Parameter]]


class SwapPatcher:
    """A1111: exchanges parameters of the loaded model, which stay until the next request differs."""

    applies_while_sampling = True

    def __init__(self, model: WebuiModel) -> None:
        assert isinstance(model.host, LdmHost)
        self.model, self.host, self.view = model, model.host, PatchView(model)
        self.state: _State | None = None

    def _checkpoint(self) -> str:
        return str(getattr(self.model.sd_model, "sd_model_checkpoint", ""))

    def apply(self, wanted: Sequence[Applied]) -> None:
        """Make the model paint with exactly these erasures; after any error it is as the host made it.

        Raises:
            PatchFailed: the weights are too coarse to hold the change, or another network paints.
        """
        if self.in_effect(wanted):
            return
        self.clear()
        try:
            if self._is_bypassed(wanted):
                raise PatchFailed("An alternative UNet is active; choose 'None' under Settings, SD Unet.")
            share = self._exchange(wanted)
            if share < MIN_EFFECT:
                raise PatchFailed(_coarse(share))
        except BaseException:
            self.clear()
            raise

    def _exchange(self, wanted: Sequence[Applied]) -> float:
        """Exchange every parameter that changes; returns the share of the change that the weights hold then."""
        places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self.state = _State(key_of(wanted), self._checkpoint(), places)  # first, so that a failure can be undone
        effect = Effect()
        for text in (False, True):
            for change in changes_of(wanted, self.view.slots, text):
                slot = change.slot
                patched = exchange(slot.module, slot.leaf, slot.owner, change.dense())
                places.append((slot.module, slot.leaf, patched))
                effect.add(patched, self.host.base_parameter(slot.module, slot.leaf), change)
        return effect.share

    def in_effect(self, wanted: Sequence[Applied]) -> bool:
        """Whether exactly these erasures are on the model now. Cheap: asked at every sampling step."""
        key = key_of(wanted)
        if self._is_bypassed(wanted):
            return False
        if self.state is None:
            return not key
        same = self.state.key == key and self.state.checkpoint == self._checkpoint()
        return same and all(module._parameters.get(leaf) is ours for module, leaf, ours in self.state.places)

    def _is_bypassed(self, wanted: Sequence[Applied]) -> bool:
        """Whether the host paints with a compiled network (TensorRT) in the place of the one that would be changed."""
        return self.host.has_other_unet() and any(one.layers(text=False) for one in wanted)

    def clear(self) -> None:
        """Put the host's own parameters back."""
        owners = {(id(slot.module), slot.leaf): slot.owner for slot in self.view.slots.values()}
        for module, leaf, _ in self.state.places if self.state else ():
            if exchanged(module, leaf) is not None:
                without_lora(owners[id(module), leaf])
            restore(module, leaf)
        self.state = None

    def forget(self) -> None:
        """The host has loaded another checkpoint into the same parameters: what was kept is of the old one."""
        forget_all(self.model.sd_model.modules())
        self.state = None


class ForgePatcher:
    """The Forge family: patches on clones of the host's patchers, renewed for every sampling."""

    applies_while_sampling = False

    def __init__(self, model: WebuiModel) -> None:
        assert isinstance(model.host, ForgeHost)
        self.model, self.host, self.view = model, model.host, PatchView(model)
        self._changed: dict[bool, tuple[str, list[Change]]] = {}
        self._cache: dict[bool, tuple[Any, str, Any]] = {}
        # Weakly, or what the host has taken off would stay on the card.
        self._checked: dict[bool, tuple[str, list[tuple[nn.Module, str, weakref.ref[Tensor]]]]] = {}

    @property
    def objects(self) -> Any:
        return self.model.sd_model.forge_objects

    def apply(self, wanted: Sequence[Applied], text: bool = False) -> None:
        """Put one side's changes on the patchers that the host will use next.

        Raises:
            PatchFailed: the host does not know one of the layers.
        """
        changes, key = self._changes(wanted, text), key_of(wanted)
        base, cached = (self.objects.clip if text else self.objects.unet), self._cache.get(text)
        if cached is not None and _descends(_side(base, text), _side(cached[2], text)):
            if changes and cached[1] == key:
                return
            base = cached[0]  # ours would be on it twice, or beside what is wanted now
        if not changes:
            self._use(base, text)
            return
        if cached is None or cached[0] is not base or cached[1] != key:
            clone = base.clone()
            _add(_side(clone, text), changes, f"concept-erasure-{key}-{'text' if text else 'unet'}")
            cached = (base, key, clone)
            self._cache[text] = cached
        self._use(cached[2], text)

    def _use(self, found: Any, text: bool) -> None:
        if text:
            self.objects.clip = found
        else:
            self.objects.unet = found

    def in_effect(self, wanted: Sequence[Applied], text: bool = False) -> bool:
        """Whether the weights that the host computes with now hold these changes.

        The first question after a patching compares the weights with the host's backup of the originals; the following
        ones only whether they are still the same objects.
        """
        changes, key = self._changes(wanted, text), key_of(wanted)
        if not changes:
            self._checked.pop(text, None)
            return True
        side = _side(self.objects.clip if text else self.objects.unet, text)
        cached = self._cache.get(text)
        if cached is None or cached[1] != key or not _descends(side, _side(cached[2], text)):
            return False
        seen_key, seen = self._checked.get(text, ("", []))
        # After another generation the host may have patched anew: then the weights are others, and checked again.
        if seen_key == key and all(module._parameters.get(leaf) is ref() for module, leaf, ref in seen):
            return True
        # Coarse weights may not hold less of it because there is a LoRA, too.
        least = MIN_EFFECT_AMONG_OTHERS if _shares(side) and _all_fine(changes) else MIN_EFFECT
        if self._effect(changes) < least:
            return False
        slots = [change.slot for change in changes]
        self._checked[text] = (key, [(slot.module, slot.leaf, weakref.ref(_now(slot))) for slot in slots])
        return True

    def why_not(self, wanted: Sequence[Applied], text: bool = False) -> str:
        """The cause where the weights themselves are why these changes are not in effect, or an empty text."""
        changes, cached = self._changes(wanted, text), self._cache.get(text)
        side = _side(self.objects.clip if text else self.objects.unet, text)
        is_on = cached is not None and cached[1] == key_of(wanted) and _descends(side, _side(cached[2], text))
        if not is_on or _all_fine(changes) or self._is_left_out(changes):
            return ""
        return _coarse(max(0.0, self._effect(changes)))

    def _changes(self, wanted: Sequence[Applied], text: bool) -> list[Change]:
        key, cached = key_of(wanted), self._changed.get(text)
        if cached is None or cached[0] != key:
            cached = self._changed[text] = (key, changes_of(wanted, self.view.slots, text))
        return cached[1]

    def _effect(self, changes: Sequence[Change]) -> float:
        """How much of the changes the weights hold, against the host's backup; 0 if one is not changed at all."""
        if self._is_left_out(changes):
            return 0.0
        effect = Effect()
        for change in changes:
            effect.add(_now(change.slot), self._before(change.slot), change)
        return effect.share

    def _is_left_out(self, changes: Sequence[Change]) -> bool:
        """Whether the host has not touched one of the weights that are to be changed."""
        return any(_now(change.slot) is self._before(change.slot) and change.acts() for change in changes)

    def _before(self, slot: Slot) -> Tensor:
        return self.host.base_parameter(slot.module, slot.leaf)

    def clear(self) -> None:
        """Nothing of ours outlives a generation but caches; the host takes its patches off by itself."""
        self._changed, self._cache, self._checked = {}, {}, {}

    forget = clear

    def load_text(self) -> None:
        """Have the host put the text encoder, as it is patched now, where it will run."""
        self.host.load(self.objects.clip.patcher)


def _side(found: Any, text: bool) -> Any:
    """The patcher of a text object or of a UNet, which is one itself."""
    return found.patcher if text else found


def patcher_for(model: WebuiModel) -> SwapPatcher | ForgePatcher:
    return ForgePatcher(model) if isinstance(model.host, ForgeHost) else SwapPatcher(model)


def _now(slot: Slot) -> Tensor:
    weight = slot.module._parameters[slot.leaf]
    assert weight is not None
    return weight


def _all_fine(changes: Sequence[Change]) -> bool:
    """Whether all weights have at least 16 bits."""
    return all(_now(change.slot).dtype in FLOATS for change in changes)


def _coarse(share: float) -> str:
    return (
        f"The model's weights are stored so coarsely that only {share:.0%} of the erasure would be left; load it in 16 "
        "or 32 bits."
    )


def _add(patcher: Any, changes: Sequence[Change], name: str) -> None:
    """Add the changes to a patcher by the host's names.

    Raises:
        PatchFailed: the host did not accept all of them.
    """
    paths = {id(module): path for path, module in patcher.model.named_modules()}
    if any(id(change.slot.module) not in paths for change in changes):
        raise PatchFailed("The host's patcher does not hold a layer that the erasure changes; update this extension.")
    keys = [f"{paths[id(change.slot.module)]}.{change.slot.leaf}" for change in changes]
    patches = {key: ("diff", (Expanding(change),)) for key, change in zip(keys, changes, strict=True)}
    options: dict[str, Any] = {"patches": patches, "strength_patch": 1.0, "strength_model": 1.0}
    if "filename" in inspect.signature(patcher.add_patches).parameters:
        options["filename"] = name
    taken = set(patcher.add_patches(**options))
    if taken != set(patches):
        raise PatchFailed(f"The host accepted {len(taken)} of {len(patches)} changes of the erasure.")


def _shares(patcher: Any) -> bool:
    """Whether others patch the same model: a loader's patches by file, or several patches of one weight."""
    if hasattr(patcher, "lora_patches"):
        return len(patcher.lora_patches) > 1
    return any(len(patches) > 1 for patches in patcher.patches.values())


def _descends(side: Any, ours: Any) -> bool:
    """Whether a patcher is ours or a clone that another extension made of it."""
    if side is ours:
        return True
    if hasattr(ours, "lora_patches"):
        return side.model is ours.model and set(ours.lora_patches) <= set(side.lora_patches)
    return side.model is ours.model and all(
        any(patch is kept for kept in side.patches.get(key, []))
        for key, wanted in ours.patches.items()
        for patch in wanted
    )
