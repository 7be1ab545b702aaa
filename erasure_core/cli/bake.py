"""write a whole checkpoint with erasures built in, for software that loads no LoRA"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..delta import weight_of
from ..errors import InvalidSettings, ModelError
from ..finite import all_finite
from ..hosts.diffusers import DiffusersModel
from ..hosts.ldm_checkpoint import ModelParts, checkpoint_tensors
from ..progress import Progress, reporting_each
from ..safe_files import read_header, write_tensors
from .erasure_arguments import add_other_base_argument, bind_all
from .model_arguments import add_model_arguments, load_chosen_model
from .terminal import check_new_file, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    purpose = "the .safetensors checkpoint to build them in; folders cannot be baked"
    add_model_arguments(parser, purpose, kinds=None)
    parser.add_argument("--erasure", action="append", required=True, metavar="FILE[:STRENGTH]", help="may be repeated")
    add_other_base_argument(parser, "build in")
    parser.add_argument("--out", type=Path, required=True, help="the new checkpoint (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _tensors(model: DiffusersModel) -> dict[str, Tensor]:
    return checkpoint_tensors(ModelParts(model.unet, model.text_encoders, model.tokenizers, model.schedule, None))


@torch.no_grad()
def baked_tensors(
    model: DiffusersModel, texts: list[str], progress: Progress | None = None, allow_other_base: bool = False
) -> dict[str, Tensor]:
    """The checkpoint tensors that erasures change, changed; float32, by their keys.

    Args:
        model: the checkpoint's model; it is changed.
        texts: erasures, ``FILE`` or ``FILE:STRENGTH``.
        progress: reports and cancellation.
        allow_other_base: as of ``StoredErasure.bind``.

    Raises:
        Cancelled: the user stopped.
    """
    before = _tensors(model)  # of most the model's own memory; what open_clip joins of several weights is copied
    erasures, layers = bind_all(texts, model, allow_other_base), model.layers()
    changes = [
        (weight_of(layers[name]), deltas[name], strength)
        for deltas, strength in erasures
        for name in deltas.changed()
        if strength
    ]
    for weight, delta, strength in reporting_each(changes, "building in", progress):
        weight.add_(strength * delta.change())
    own = {weight.data_ptr() for weight, _, _ in changes}
    after = _tensors(model).items()
    return {key: tensor for key, tensor in after if tensor.data_ptr() in own or not torch.equal(tensor, before[key])}


def run(options: argparse.Namespace) -> None:
    if not os.path.isfile(options.model):  # pathlib raises an error for a name that is too long
        raise ModelError(f"{options.model} is no checkpoint file; only .safetensors checkpoints can be baked.")
    check_new_file(options.out, options.overwrite, options.model)
    model = load_chosen_model(options)
    with terminal_progress() as progress, safe_open(options.model, framework="pt") as file:
        changed = baked_tensors(model, options.erasure, progress, options.allow_other_base)
        tensors = {key: file.get_tensor(key) for key in reporting_each(file.keys(), "reading the checkpoint", progress)}
    metadata = read_header(options.model).get("__metadata__", {})
    tensors |= {key: tensor.to(tensors[key].dtype) for key, tensor in changed.items()}
    for key in changed:
        if not all_finite(tensors[key].float()):
            raise InvalidSettings(f"{key} becomes too large for the type of {options.model}; lower the strength.")
    write_tensors(options.out, tensors, metadata)
    result = {"path": str(options.out), "changed": len(changed), "bytes": options.out.stat().st_size}
    print(json.dumps(result) if options.json else f"{options.out}: {len(changed)} of {len(tensors)} tensors changed")
