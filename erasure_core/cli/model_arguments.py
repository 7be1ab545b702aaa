"""The model on the command line: ``--model`` and what its files may not tell."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..errors import ModelError
from ..hosts.diffusers import DiffusersModel
from ..model import PATCH
from .terminal import load_model

SMALLEST, LARGEST = 64, 4096
"""Sides of pictures in pixels."""


def pixels(text: str) -> tuple[int, int]:
    """Read a picture size, ``512`` or ``768x512`` (width x height), as (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a size such as 512 or 768x512, got {text!r}")
    width, height = int(sides[0]), int(sides[-1])
    if any(side % PATCH or not SMALLEST <= side <= LARGEST for side in (width, height)):
        raise argparse.ArgumentTypeError(
            f"each side must be a multiple of {PATCH} from {SMALLEST} to {LARGEST}, got {text!r}"
        )
    return height, width


KINDS = "a diffusers folder, or a .safetensors checkpoint of SD1.x, SD2.x or SDXL"
"""What ``--model`` takes."""


def add_model_arguments(
    parser: argparse.ArgumentParser,
    purpose: str = "the base model",
    required: bool = True,
    kinds: str | None = KINDS,
) -> None:
    """``--model`` and what its files may not tell. Read by ``load_chosen_model``.

    Args:
        parser: gets the arguments.
        purpose: what the model is for.
        required: whether the command needs one.
        kinds: what is taken; ``None`` where ``purpose`` says it.
    """
    parser.add_argument("--model", type=Path, required=required, help=f"{purpose}: {kinds}" if kinds else purpose)
    parser.add_argument(
        "--prediction",
        choices=("epsilon", "v_prediction"),
        help="what the model predicts (default: what its files say)",
    )
    parser.add_argument(
        "--size",
        type=pixels,
        metavar="PIXELS",
        help="side of its pictures, or WIDTHxHEIGHT (default: what its files say, or its family's)",
    )


def load_chosen_model(options: argparse.Namespace, device: str = "cpu", pictures: bool = False) -> DiffusersModel:
    """The model that ``add_model_arguments`` asked for."""
    model = load_model(options.model, device, pictures, options.prediction)
    if options.prediction:  # a folder's own word is overruled too
        if options.prediction == "epsilon" and not model.schedule.signal[-1]:
            raise ModelError(f"The model {options.model} starts from pure noise, so it cannot predict epsilon.")
        model.schedule = replace(model.schedule, prediction=options.prediction)
    if options.size:
        height, width = options.size
        model.latent_shape = (model.latent_shape[0], height // PATCH, width // PATCH)
    return model
