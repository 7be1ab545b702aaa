"""Every method on a model's true shapes: trained a little, saved, loaded as a LoRA by diffusers, and switched off.

python -m benchmarks every --family sdxl          true size, as long as it takes
python -m benchmarks every --tiny                 all families in small, which the tests do
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure_core import METHODS, Concept, applied, erase, read_erasure, write_erasure
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods import Method

from .gpu_check import apart, prediction, weights_hash

CONCEPT = Concept(("ball",), None, ("a red box", "a cat", "a dog in a park"))
FEW = {
    "steps": 2, "trajectories": 5, "trajectory_steps": 2, "refresh": 2, "batch": 1, "rank": 4, "learning_rate": 1e-3,
    "inversion_steps": 1, "pictures": 1, "search": False, "replace": False, "neighbours": 0,
}  # fmt: skip
"""Settings that make a training short, as far as a method has them: words are not looked for, which says nothing of
shapes. Closed forms keep their rank."""


LOADED = {torch.float32: 1e-2}
LOADED_ROUNDED = 0.5
"""How far diffusers' LoRA loader may be from the trained change, relative to the change, by the type of the weights. In
16 bits a prediction is rounded by as much as so short a training changes it: there only the direction can be seen."""


@dataclass(frozen=True)
class Verdict:
    """What a method did to a model.

    Args:
        method: its name.
        moved: relative change of the prediction for the concept with the erasure on.
        loaded: how far diffusers' LoRA loader is from that, relative to the change itself.
        restored: whether predictions without it and all weights are the same to the bit.
        bound: what ``loaded`` has to stay below.
    """

    method: str
    moved: float
    loaded: float
    restored: bool
    bound: float

    @property
    def faults(self) -> list[str]:
        """What is wrong, for people; empty if all is as it should be."""
        found = {
            "the prediction did not change": not self.moved > 0,
            f"loaded as a LoRA it is {self.loaded:.1e} of the change away, more than {self.bound:g}": not (
                self.loaded < self.bound
            ),
            "switched off, the model is not as it was": not self.restored,
        }
        return [fault for fault, is_so in found.items() if is_so]


def short(method: Method) -> Any:
    """The method's settings for a short training."""
    known = {f.name for f in fields(method.settings)}
    chosen = {name: value for name, value in FEW.items() if name in known}
    if method.solve is not None:
        chosen.pop("rank", None)
    return method.settings(**chosen)


def check(model: DiffusersModel, method: Method) -> Verdict:
    """Run one method on a model."""
    weights, before = weights_hash(model), prediction(model)
    erasure, _ = erase(model, CONCEPT, method.name, short(method))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ball.safetensors"
        write_erasure(path, erasure, model)
        with applied(model, [(read_erasure(path).bind(model), 1.0)]):
            with_erasure = prediction(model)
        loaded = through_diffusers(model, path)
    restored = torch.equal(prediction(model), before) and weights_hash(model) == weights
    change = (with_erasure - before).double().norm()
    missed = float((loaded - with_erasure).double().norm() / change)
    bound = LOADED.get(model.dtype, LOADED_ROUNDED)
    return Verdict(method.name, apart(with_erasure, before), missed, restored, bound)


def through_diffusers(model: DiffusersModel, path: Path) -> Tensor:
    """The prediction with the file loaded by diffusers' own LoRA loader, which is unloaded again."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    parts: dict[str, Any] = {"vae": None, "unet": model.unet, "scheduler": DDIMScheduler()}
    names = ("", "_2")[: len(model.text_encoders)]
    for name, encoder, tokenizer in zip(names, model.text_encoders, model.tokenizers, strict=True):
        parts |= {f"text_encoder{name}": encoder, f"tokenizer{name}": tokenizer}
    if not model.is_sdxl:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = (StableDiffusionXLPipeline if model.is_sdxl else StableDiffusionPipeline)(**parts)
    pipeline.load_lora_weights(str(path))
    try:
        return prediction(DiffusersModel(pipeline.unet, model.text_encoders, model.tokenizers, model.schedule))
    finally:
        pipeline.unload_lora_weights()


def verdicts(model: DiffusersModel, names: list[str] | None = None) -> Iterator[Verdict]:
    """All methods, or those named."""
    for name, method in METHODS.items():
        if names is None or name in names:
            yield check(model, method)
