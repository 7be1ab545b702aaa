"""Erasures on the command line: ``FILE`` or ``FILE:STRENGTH``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..delta import DeltaSet
from ..erasure_file import StoredErasure, read_erasure
from ..errors import InvalidSettings
from ..model import LoadedModel


def add_other_base_argument(parser: argparse.ArgumentParser, purpose: str = "apply") -> None:
    """``--allow-other-base``: what ``StoredErasure.bind`` needs for fine-tunes of the base model.

    Args:
        parser: gets the argument.
        purpose: what the command does with erasures, as a verb.
    """
    parser.add_argument(
        "--allow-other-base", action="store_true", help=f"{purpose} erasures made on another model of this shape"
    )


def split_strength(text: str) -> tuple[Path, float]:
    """``file.safetensors:0.8`` to path and strength; without a number the strength is 1.

    Raises:
        InvalidSettings: there is no name, or the strength is not a number between -10 and 10.
    """
    if not text.strip():
        raise InvalidSettings("The name of an erasure file is empty; write FILE or FILE:0.8.")
    path, colon, number = text.rpartition(":")
    if not colon or number.endswith(".safetensors") or "/" in number or "\\" in number:
        return Path(text), 1.0
    try:
        strength = float(number)
    except ValueError:
        strength = float("nan")
    if not -10 <= strength <= 10:
        raise InvalidSettings(
            f"{number!r} in {text!r} is not a strength; write FILE:0.8, with a number from -10 to 10."
        )
    return Path(path), strength


def read_all(texts: Sequence[str]) -> list[tuple[StoredErasure, float]]:
    """Read erasure files with their strengths.

    Raises:
        InvalidFile: a file is missing or no erasure.
    """
    split = [split_strength(text) for text in texts]
    return [(read_erasure(path), strength) for path, strength in split]


def bind_all(texts: Sequence[str], model: LoadedModel, allow_other_base: bool) -> list[tuple[DeltaSet, float]]:
    """Read erasure files and match them to a model; raises also as ``StoredErasure.bind``."""
    return [(stored.bind(model, allow_other_base), strength) for stored, strength in read_all(texts)]
