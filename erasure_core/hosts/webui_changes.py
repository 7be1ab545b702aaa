"""What erasures change of a web UI's parameters, kept as small as the erasures are until a host computes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..delta import Delta, LowRankDelta, fan_in
from .webui_slots import Applied, Slot

SAMPLED_ROWS = 64
"""Rows of a weight by which is judged how much of a change it holds: hosts patch whole weights."""


@dataclass(frozen=True)
class Part:
    """Args:
    delta: the change of a layer.
    strength: factor on it.
    rows: the first of the parameter's rows that are the layer's, and the one behind the last.
    """

    delta: Delta
    strength: float
    rows: tuple[int, int]


@dataclass
class Change:
    """The whole change of one parameter: of one or several layers in it, by one or several erasures.

    Args:
        slot: where the parameter is.
        shape: its shape.
        parts: what is added up.
    """

    slot: Slot
    shape: torch.Size
    parts: list[Part] = field(default_factory=list)

    def acts(self) -> bool:
        """Whether it is more than zeros; two parts that cancel count as acting."""
        return any(part.delta.acts() for part in self.parts)

    @torch.no_grad()
    def dense(self) -> Tensor:
        """All of it, float32, the caller's to overwrite."""
        total = torch.zeros(self.shape[0], fan_in(self.shape))
        with torch.autocast("cpu", enabled=False):  # hosts call us inside their own half precision
            for part in self.parts:
                _add(total[slice(*part.rows)], part, slice(None))
        return total.view(self.shape)

    @torch.no_grad()
    def rows(self, places: Tensor) -> Tensor:
        """These rows of it, float32 [rows, inputs]."""
        total = torch.zeros(len(places), fan_in(self.shape))
        with torch.autocast("cpu", enabled=False):
            for part in self.parts:
                mine = (places >= part.rows[0]) & (places < part.rows[1])
                total[mine] = _add(total[mine], part, places[mine] - part.rows[0])
        return total

    def sample(self) -> Tensor:
        """Which rows tell how much of it a weight holds: some at even distances, all where there is nothing in them."""
        rows = torch.arange(0, self.shape[0], max(1, self.shape[0] // SAMPLED_ROWS))
        return rows if self.rows(rows).any() else torch.arange(self.shape[0])


def _add(total: Tensor, part: Part, rows: Tensor | slice) -> Tensor:
    """Add these of a part's rows to ``total``, in place."""
    delta = part.delta
    if isinstance(delta, LowRankDelta):
        return total.addmm_(delta.up.flatten(1)[rows], delta.down.flatten(1), alpha=part.strength)
    return total.add_(delta.change().flatten(1)[rows], alpha=part.strength)


def changes_of(wanted: Sequence[Applied], slots: Mapping[str, Slot], text: bool) -> list[Change]:
    """The change of every touched parameter of one side, at its strengths added up."""
    found: dict[tuple[int, str], Change] = {}
    for one in wanted:
        for name in one.layers(text):
            slot = slots[name]
            parameter = slot.module._parameters[slot.leaf]
            assert parameter is not None
            change = found.setdefault((id(slot.module), slot.leaf), Change(slot, parameter.shape))
            change.parts.append(Part(one.deltas[name], one.strength(name), slot.rows or (0, parameter.shape[0])))
    return list(found.values())


class Expanding(Tensor):
    """A change as a tensor for hosts that keep their patches: it takes the memory of its factors, and is worked out
    whenever something is computed with it. All the family's hosts take it as a full-size difference; their own low-rank
    patches are of different kinds."""

    change: Change
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, change: Change) -> Expanding:
        made: Expanding = Tensor._make_wrapper_subclass(cls, change.shape, dtype=torch.float32)
        made.change = change
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Expanding({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        def expanded(value: Any) -> Any:
            return value.change.dense() if isinstance(value, Expanding) else value

        return func(*tree_map(expanded, args), **tree_map(expanded, kwargs or {}))


class Effect:
    """How much of a change is found in weights: <after - before, change> / <change, change> over sampled rows."""

    def __init__(self) -> None:
        self.found, self.whole = 0.0, 0.0

    @torch.no_grad()
    def add(self, after: Tensor, before: Tensor, change: Change) -> None:
        rows = change.sample()
        wanted = change.rows(rows)
        moved = _rows(after, rows) - _rows(before, rows)
        self.found += float((moved * wanted).sum(dtype=torch.float64))
        self.whole += float(wanted.square().sum(dtype=torch.float64))

    @property
    def share(self) -> float:
        return self.found / self.whole if self.whole else 1.0


def _rows(weight: Tensor, rows: Tensor) -> Tensor:
    # Bytes where there are eight bits: those are not to be indexed everywhere.
    plain = weight.detach().flatten(1)
    if plain.element_size() == 1:
        plain = plain.float()
    return plain[rows.to(plain.device)].float().cpu()
