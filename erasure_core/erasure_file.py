"""Erasure files: safetensors that every Stable Diffusion UI loads as a LoRA, with a manifest.

Low-rank changes are stored as ``<module>.lora_up.weight``, ``.lora_down.weight`` and ``.alpha``; dense ones as
``<module>.diff``. Module names follow ``naming.file_names``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .broken_model import check_model
from .delta import Delta, DeltaSet, DenseDelta, LowRankDelta, weight_of
from .errors import InvalidFile, InvalidSettings, TrainingFailed, Unconverted, WrongBase
from .fingerprint import distance, fingerprint, sketch, tolerance_of
from .manifest import Manifest
from .model import LoadedModel
from .naming import file_names
from .plain_weights import PICKLES
from .safe_files import FLOATS, check_regular, read_header, read_tensors, write_tensors

SUFFIXES = UP, DOWN, ALPHA, DIFF = ".lora_up.weight", ".lora_down.weight", ".alpha", ".diff"
BASE_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
}
NOTHING_LEFT = "The changes cancel out or are zero, so there is nothing to write; choose other strengths."
PUBLISHED = "if other software published it (ESD, UCE and the like), convert it first, with the model it was made on"
DORA = ("dora_scale", "lora_magnitude_vector")
"""In names of tensors that a DoRA has beside a LoRA's."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Erasure:
    """A change of a known model and its description."""

    deltas: DeltaSet
    manifest: Manifest


@dataclass(frozen=True)
class StoredErasure:
    """A file's content before it meets a model: changes by the file's module names.

    Args:
        changes: module name to change.
        manifest: the description, or ``None`` for a plain LoRA that someone else made.
        path: where it came from, for messages.
    """

    changes: Mapping[str, Delta]
    manifest: Manifest | None
    path: Path

    def bind(self, model: LoadedModel, allow_other_base: bool = False, device: torch.device | None = None) -> DeltaSet:
        """Match the changes to a model's layers and check that they belong to it.

        Args:
            model: the loaded model.
            allow_other_base: apply to a model of the same shape even if it is not the one the erasure was made on.
            device: where the matched changes lie; by default where the model computes. Those of the file stay where
                they are.

        Raises:
            WrongBase: the model is of another family, has no such layers, other shapes, or other weights.
            InvalidFile: the file changes one layer twice, by two names.
            ModelError: the model's own weights are not finite.
        """
        if self.manifest is not None and self.manifest.family != model.family:
            raise WrongBase(
                f"{self.path} is for another kind of model: {self.manifest.family}, but this one is {model.family}."
            )
        deltas = DeltaSet(self._match(model))
        if self.manifest is not None and not allow_other_base:
            self._check_base(model, deltas.changed())
        return DeltaSet({name: _copied(delta, device or model.device) for name, delta in deltas.deltas.items()})

    def _match(self, model: LoadedModel) -> dict[str, Delta]:
        """The changes by canonical layer name, each of its layer's shape."""
        layers = model.layers()
        # Others write diffusers' names for SDXL, too.
        names = {"lora_" + name.replace(".", "_"): name for name in layers if name.startswith("unet.")}
        for dense in (False, True):
            names |= {file: ours for ours, file in file_names(layers, model.family, dense).items()}
        unknown = [file for file in self.changes if file not in names]
        if unknown:
            raise WrongBase(
                f"{self.path} changes {len(unknown)} layers that this model does not have (first: {unknown[0]!r}); "
                "it was made for another kind of model."
            )
        deltas = {names[file]: delta for file, delta in self.changes.items()}
        if len(deltas) < len(self.changes):
            counted = Counter(names[file] for file in self.changes)
            raise InvalidFile(f"{self.path} changes {counted.most_common(1)[0][0]} twice, by two names.")
        for name, delta in deltas.items():
            change, weight = delta.shape, weight_of(layers[name]).shape
            if change != weight:
                raise WrongBase(
                    f"{self.path} changes {name} as a {tuple(change)} weight, but this model's is {tuple(weight)}; "
                    "it was made for another kind of model."
                )
        return deltas

    def _check_base(self, model: LoadedModel, names: Sequence[str]) -> None:
        manifest = self.manifest
        if manifest is None:
            return
        # The sketch reads a part of each weight, the hash all of them; a stranger's sketch may give no number at all.
        apart = distance(manifest.base_sketch, sketch(model, names))
        if not apart <= tolerance_of(model, names) and fingerprint(model, names) != manifest.base_fingerprint:
            check_model(model)
            raise WrongBase(
                f"{self.path} was made on another base model: the weights it changes differ by about {apart:.1%}. "
                "Use it with the model it was made on, or allow another base and judge the pictures yourself."
            )


def _copied(delta: Delta, device: torch.device) -> Delta:
    """A change on a device, in the same memory if it lies there: ``Module.to`` would move whoever else holds it."""
    return type(delta)(*[p.detach().to(device) for p in delta.parameters()])


def write_erasure(path: Path, erasure: Erasure, model: LoadedModel, dtype: torch.dtype | None = None) -> Manifest:
    """Write an erasure; returns the manifest as stored, with the stated storage error.

    Args:
        path: the file, replaced as a whole.
        erasure: what to write.
        model: the model it was made on, for the names and shapes of its layers.
        dtype: of the stored change; by default float16 for low-rank changes, float32 for dense ones (a float16 dense
            change misses the erased float16 weights by one unit in the last place here and there). A change too large
            for the type is stored in float32.

    Raises:
        OutputError: the file cannot be written.
        InvalidSettings: the change is zero.
        TrainingFailed: the change is not finite.
        ModelError: neither are the weights of the model itself.
        ValueError: dense and low-rank changes are mixed, or there is none.
    """
    dense = {isinstance(delta, DenseDelta) for delta in erasure.deltas.deltas.values()}
    if len(dense) != 1:
        raise ValueError("an erasure file holds either dense or low-rank changes, and at least one")
    if all(delta.norm() == 0 for delta in erasure.deltas.deltas.values()):
        raise InvalidSettings(NOTHING_LEFT)
    is_dense, layers = dense.pop(), model.layers()
    names = file_names(layers, erasure.manifest.family, is_dense)
    # Hosts differ in what they have beside: SD2's last text layer, which nothing trains, is in some only.
    changed = DeltaSet({name: erasure.deltas[name] for name in erasure.deltas.changed()})
    whole = _with_whole_text_attention(changed, layers, is_dense)
    wanted = dtype or (torch.float32 if is_dense else torch.float16)
    for stored_as in (wanted, torch.float32):
        error, left = _storage_error(erasure, stored_as), _changed_as(erasure.deltas, stored_as)
        if math.isfinite(error) and left:
            manifest = replace(erasure.manifest, dtype=str(stored_as).removeprefix("torch."), storage_error=error)
            if left != erasure.deltas.changed():  # the base is recognised by the layers that the file does change
                manifest = replace(manifest, base_fingerprint=fingerprint(model, left), base_sketch=sketch(model, left))
            tensors = {k: t for name, delta in whole.items() for k, t in _stored(names[name], delta, stored_as).items()}
            write_tensors(path, tensors, _metadata(path, manifest))
            return manifest
    check_model(model)
    raise TrainingFailed(
        "The change is not a finite number, so nothing was written. After a training lower its learning rate; "
        "otherwise look for numbers that are too large in the model, the file or its strength."
    )


def _changed_as(deltas: DeltaSet, dtype: torch.dtype) -> list[str]:
    """The layers whose change is not rounded to nothing."""
    rounded = {name: type(delta)(*[p.to(dtype) for p in delta.parameters()]) for name, delta in deltas.deltas.items()}
    return DeltaSet(rounded).changed()


def _stored(module: str, delta: Delta, dtype: torch.dtype) -> dict[str, Tensor]:
    if isinstance(delta, LowRankDelta):
        alpha = torch.tensor(float(delta.rank))
        return {module + UP: delta.up.to(dtype), module + DOWN: delta.down.to(dtype), module + ALPHA: alpha}
    return {module + DIFF: delta.change().to(dtype)}


def _with_whole_text_attention(deltas: DeltaSet, layers: Mapping[str, nn.Module], dense: bool) -> dict[str, Delta]:
    """Add zero changes so that q, k, v and out come together: diffusers refuses a text attention that lacks some."""
    whole = dict(deltas.deltas)
    if dense:
        return whole
    for name in deltas:
        parent, _, leaf = name.rpartition(".")
        for sibling in TEXT_ATTENTION if leaf in TEXT_ATTENTION else ():
            if f"{parent}.{sibling}" not in whole:
                shape = weight_of(layers[f"{parent}.{sibling}"]).shape
                whole[f"{parent}.{sibling}"] = LowRankDelta(torch.zeros(1, shape[1]), torch.zeros(shape[0], 1))
    return whole


@torch.no_grad()
def _storage_error(erasure: Erasure, dtype: torch.dtype) -> float:
    """||stored - exact|| / ||exact|| of the whole change; not finite if the stored change is not."""
    missed, whole = 0.0, 0.0
    for delta in erasure.deltas.deltas.values():
        exact = delta.change().cpu().double()
        rounded = type(delta)(*[p.to(dtype) for p in delta.parameters()]).change().cpu().double()
        missed += float((rounded - exact).pow(2).sum())
        whole += float(exact.pow(2).sum())
    return math.sqrt(missed / whole) if whole else 0.0


def _metadata(path: Path, manifest: Manifest) -> dict[str, str]:
    return {
        "erasure": manifest.to_json(),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": f"Erasure of {manifest.words[0]}",
        "modelspec.architecture": f"{ARCHITECTURES.get((manifest.family, manifest.prediction), manifest.family)}/lora",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(manifest.prediction, manifest.prediction),
        "ss_base_model_version": BASE_VERSIONS.get(manifest.family, manifest.family),
        "ss_output_name": path.stem.encode(errors="replace").decode(),
        "ss_v2": str(manifest.family == "sd2"),
    }


def read_erasure(path: Path) -> StoredErasure:
    """Read a file that anyone may have made: an erasure, or a plain LoRA in kohya's names.

    Raises:
        InvalidFile: missing, damaged, hostile, or holding anything but changes of layers.
        Unconverted: of those, what may be weights that others publish.
    """
    manifest = _check_content(path)
    return StoredErasure(changes_of(path, read_tensors(path)[0]), manifest, path)


def changes_of(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    """The changes that tensors by kohya's names hold, by the names of their modules in the file.

    Raises:
        InvalidFile: a name is no such, or a change is incomplete or not finite.
    """
    refuse_dora(path, tensors)
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        suffix = next((s for s in SUFFIXES if key.endswith(s)), None)
        if suffix is None:
            raise InvalidFile(f"{path} holds {key[:80]!r} beside LoRA factors; it is no plain LoRA.")
        modules.setdefault(key.removesuffix(suffix), {})[suffix] = tensor
    return {module: _delta(path, module, parts) for module, parts in modules.items()}


def refuse_dora(path: Path, names: Iterable[str]) -> None:
    """Raises InvalidFile for a DoRA: without its part that is no LoRA, the rest means something else."""
    if any(part in name for name in names for part in DORA):
        raise InvalidFile(
            f"{path} is a DoRA, no plain LoRA: it also sets how long rows of weights are, which no erasure file holds; "
            "it cannot be used."
        )


def _check_content(path: Path) -> Manifest | None:
    """Refuse by the header alone what is no erasure, before gigabytes are read; returns the manifest."""
    if path.suffix in PICKLES:
        check_regular(path)
        raise Unconverted(f"{path} is no erasure file, which ends in .safetensors; {PUBLISHED}.")
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    if not header:
        raise InvalidFile(f"{path} is empty: it changes no layer.")
    foreign = next((key for key in header if not key.startswith("lora_")), None)
    if foreign is not None:
        said = f"{path} holds {foreign[:80]!r}, which is not a change of a layer; it is not an erasure file"
        raise Unconverted(f"{said}: {PUBLISHED}.")
    refuse_dora(path, header)
    for key, entry in header.items():
        if not key.endswith(SUFFIXES):
            raise InvalidFile(f"{path} holds {key!r}, which is not a change of a layer; it is not an erasure file.")
        if entry["dtype"] not in FLOATS and not key.endswith(ALPHA):
            raise InvalidFile(f"{path} holds {key!r} as {entry['dtype']}; changes are floating point numbers.")
    if "erasure" not in metadata:
        return None
    try:
        return Manifest.from_json(metadata["erasure"])
    except InvalidFile as error:
        raise InvalidFile(f"{path}: {error}") from error


def _delta(path: Path, module: str, parts: dict[str, Tensor]) -> Delta:
    delta: Delta | None = None
    if set(parts) == {DIFF} and parts[DIFF].dim() in (2, 4):
        delta = DenseDelta(parts[DIFF])
    elif {UP, DOWN} <= set(parts) <= {UP, DOWN, ALPHA}:
        up, down, alpha = parts[UP].float(), parts[DOWN].float(), parts.get(ALPHA)
        same_rank = up.dim() == down.dim() and up.dim() in (2, 4) and up.shape[1] == len(down)
        if same_rank and up[:1, :1].numel() == 1 and down.numel() and (alpha is None or alpha.numel() == 1):
            scale = 1.0 if alpha is None else alpha.float().item() / len(down)
            delta = LowRankDelta(down, up * scale)
    if delta is None:
        raise InvalidFile(f"{path} holds an incomplete or misshapen change of {module!r}; get a fresh copy.")
    # The stored numbers were finite, their product or their float32 form may not be.
    if not delta.is_bounded():
        raise InvalidFile(f"{path} holds a change of {module!r} that is not finite; it cannot be used.")
    return delta
