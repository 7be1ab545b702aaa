"""Random changes of a model's layers, large enough to be seen in its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from erasure_core import Concept, DeltaSet, Erasure, applied, erase
from erasure_core.delta import Delta, DenseDelta, LowRankDelta, weight_of
from erasure_core.fingerprint import fingerprint, sketch
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.layers import select

CONCEPT = Concept(("ball", "orb"), "box", ("a red box",))


def random_deltas(model: DiffusersModel, groups: str, seed: int = 0, dense: bool = False) -> DeltaSet:
    """Changes of rank 3, or the same in full size, of the given layers."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Delta] = {}
    for name, layer in select(model.layers(), groups).items():
        delta = LowRankDelta.zero(weight_of(layer).shape, 3, generator)
        delta.up.data.normal_(0, 0.2, generator=generator)
        deltas[name] = DenseDelta(delta.change().detach()) if dense else delta
    return DeltaSet(deltas)


def as_erasure(model: DiffusersModel, deltas: DeltaSet) -> Erasure:
    """A closed form's manifest around any changes of this model."""
    known, _ = erase(model, CONCEPT, "closed_form")
    names = deltas.changed()
    own = {"base_fingerprint": fingerprint(model, names), "base_sketch": sketch(model, names)}
    return Erasure(deltas, replace(known.manifest, **own))


def predict(model: DiffusersModel, *parts: tuple[DeltaSet, float]) -> torch.Tensor:
    """What a model predicts for two fixed states, with changes applied."""
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([30, 700])
    with applied(model, parts), torch.no_grad():
        return model.predict(z, t, model.encode(["a red ball", "cat"]))


def add_by_file_names(
    checkpoint: dict[str, torch.Tensor], file: Mapping[str, torch.Tensor], prefixes: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Add a file's changes to a checkpoint in the original layout as hosts do: by its keys with dots as underscores.

    Args:
        checkpoint: by the original keys.
        file: by an erasure's names.
        prefixes: of the keys, each with the prefix that stands for it in files.
    """
    found = {
        f"{short}_{key.removeprefix(long).removesuffix('.weight').replace('.', '_')}": key
        for long, short in prefixes.items()
        for key in checkpoint
        if key.startswith(long)
    }
    changed = dict(checkpoint)
    for name in sorted({name.partition(".")[0] for name in file}):
        key = found[name]
        if f"{name}.diff" in file:
            change = file[f"{name}.diff"]
        else:
            up, down = file[f"{name}.lora_up.weight"].float(), file[f"{name}.lora_down.weight"].float()
            scale = float(file[f"{name}.alpha"]) / len(down)
            change = scale * (up.flatten(1) @ down.flatten(1))
        changed[key] = changed[key] + change.reshape(changed[key].shape)
    return changed
