"""Where each canonical layer's weight lives in a web UI's model: a parameter, or some rows of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..delta import DeltaSet, inner_product
from ..errors import ModelError
from ..layers import is_text
from .webui import WebuiModel, is_packed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slot:
    """Args:
    module: holds the parameter.
    leaf: its name there.
    owner: the module that A1111's Lora extension keeps its state on.
    rows: first and last row of a joined weight, or ``None`` for all of it.
    """

    module: nn.Module
    leaf: str
    owner: nn.Module
    rows: tuple[int, int] | None = None


class Rows(nn.Module):
    """Looks like a linear layer, but is part of a joined weight: open_clip keeps query, key and value in one."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.slot = [slot]  # in a list, so that the slot's modules do not become children

    @property
    def weight(self) -> Tensor:
        slot = self.slot[0]
        whole = slot.module._parameters[slot.leaf]
        assert whole is not None
        return whole if slot.rows is None else whole[slice(*slot.rows)]


class PatchView:
    """A loaded model as far as ``StoredErasure.bind`` needs it, with all layers that can be *patched*.

    ``WebuiModel.layers`` has only those that can also be trained: whose forward the host calls.

    Raises:
        ModelError: its weights are packed, so that no change can be added to them.
    """

    def __init__(self, model: WebuiModel) -> None:
        if is_packed(model.unet):
            raise ModelError(
                "The loaded model's weights are quantised (nf4 or gguf), so no erasure can be put on them; load it in "
                "16 or 32 bits."
            )
        self.model = model
        self.family = model.family
        self.device = CPU
        self.slots = {name: Slot(layer, "weight", layer) for name, layer in model.layers().items()}
        self._layers: dict[str, nn.Module] = dict(model.layers())
        for name, slot in _attention_slots(model).items():
            self.slots[name] = slot
            self._layers[name] = Rows(slot)

    def layers(self) -> dict[str, nn.Module]:
        return self._layers

    def base_weight(self, name: str) -> Tensor:
        slot = self.slots[name]
        whole = self.model.host.base_parameter(slot.module, slot.leaf)
        return whole if slot.rows is None else whole[slice(*slot.rows)]


def _attention_slots(model: WebuiModel) -> dict[str, Slot]:
    """The attention layers of open_clip text encoders by canonical name."""
    found: dict[str, Slot] = {}
    for side in model.texts:
        for path, module in side.network.named_modules() if side.is_open_clip else ():
            if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
                out = side.canonical(f"{path}.out_proj")
                assert out is not None
                stem, width = out.removesuffix("out_proj"), module.embed_dim
                for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
                    rows = (place * width, (place + 1) * width)
                    found[stem + part] = Slot(module, "in_proj_weight", module, rows)
                found[out] = Slot(module.out_proj, "weight", module)
    return found


@dataclass(frozen=True)
class Applied:
    """One erasure bound to a model.

    Args:
        label: name for people.
        digest: of the file's content.
        deltas: changes by canonical layer name.
        unet: strength for the diffusion network.
        text: strength for the text encoders.
    """

    label: str
    digest: str
    deltas: DeltaSet
    unet: float = 1.0
    text: float = 1.0

    def strength(self, layer: str) -> float:
        return self.text if is_text(layer) else self.unet

    def layers(self, text: bool) -> list[str]:
        """The layers of one side that it changes at its strengths."""
        return [name for name in self.deltas if is_text(name) == text and self.strength(name) != 0]


def key_of(wanted: Sequence[Applied]) -> str:
    """What decides which weights result; empty if nothing is changed."""
    parts = [f"{one.digest}:{one.unet!r}:{one.text!r}" for one in wanted if one.layers(True) or one.layers(False)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else ""


class Products:
    """Inner products of erasures' changes, each computed once: they are asked for before every generation."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bool], float] = {}

    def of(self, a: Applied, b: Applied, text: bool) -> float:
        """Of one side, at strength 1."""
        key = (a.digest, b.digest, text)
        if key not in self._known:
            both = [name for name in a.deltas if is_text(name) == text and name in b.deltas.deltas]
            self._known[key] = sum(inner_product(a.deltas[name], b.deltas[name]) for name in both)
        return self._known[key]

    def kept(self, wanted: Sequence[Applied], others: Sequence[Applied]) -> float:
        """How much of the wanted change is left with others beside it, on the side where that is least: <all, wanted> /
        <wanted, wanted>."""
        return min(self._kept(wanted, others, text) for text in (False, True))

    def _kept(self, wanted: Sequence[Applied], others: Sequence[Applied], text: bool) -> float:
        def total(beside: Sequence[Applied]) -> float:
            return sum(
                _of_side(a, text) * _of_side(b, text) * self.of(a, b, text)
                for a in wanted
                for b in beside
                if _of_side(a, text) and _of_side(b, text)
            )

        whole = total(wanted)
        return 1.0 + total(others) / whole if whole > 0 else 1.0


def _of_side(one: Applied, text: bool) -> float:
    return one.text if text else one.unet
