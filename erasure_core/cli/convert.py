"""change an erasure between low rank and dense, or turn weights that others publish into an erasure"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..combining import after_loss, reshaped
from ..concept import Concept
from ..delta import DeltaSet
from ..erasing import describe
from ..erasure_file import Erasure, read_erasure, write_erasure
from ..errors import InvalidConcept, InvalidSettings
from ..foreign import CONVERTED, looks_foreign, missing_of, not_kept, read_foreign
from ..hosts.diffusers import DiffusersModel
from ..manifest import Manifest
from .erasure_arguments import add_other_base_argument
from .model_arguments import add_model_arguments, load_chosen_model
from .terminal import check_new_file, printable, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an erasure, or ESD, UCE or similar weights (.safetensors, .pt, .bin)")
    add_model_arguments(parser, "the base model it was made on")
    add_other_base_argument(parser, "convert")
    parser.add_argument("--out", type=Path, required=True, help="the new erasure file (.safetensors)")
    parser.add_argument("--to", choices=("low-rank", "dense"), default="low-rank", help="form (default low-rank)")
    parser.add_argument(
        "--rank", type=int, default=0, help="largest rank; 0, the default, takes the least that is exact"
    )
    parser.add_argument("--concept", action="append", default=[], help="what foreign weights erase; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _describe(model: DiffusersModel, deltas: DeltaSet, words: list[str], source: dict[str, Any]) -> Manifest:
    return describe(model, deltas, Concept(tuple(words)), *CONVERTED, source)


def _read(options: argparse.Namespace, model: DiffusersModel) -> tuple[DeltaSet, Manifest, Mapping[str, float]]:
    """The change, what it is, and what of it may be rounding."""
    if looks_foreign(options.file):
        found = read_foreign(options.file, model, model.other_parameters())
        if not options.concept:
            raise InvalidConcept(f"{options.file} does not say what it erases; give --concept.")
        if found.unread:
            print(
                f"Not read: {len(found.unread)} tensors that this model does not have, such as "
                f"{printable(found.unread[0][:80])!r}. If they belong to the erasure, that part of it is missing.",
                file=sys.stderr,
            )
        manifest = _describe(model, found.deltas, options.concept, found.source(options.file))
        return found.deltas, manifest, found.noise
    stored = read_erasure(options.file)
    deltas = stored.bind(model, options.allow_other_base)
    if stored.manifest is not None:
        return deltas, stored.manifest, {}
    if not options.concept:
        raise InvalidConcept(f"{options.file} is a LoRA that does not say what it erases; give --concept.")
    return deltas, _describe(model, deltas, options.concept, {"file": options.file.name}), {}


def run(options: argparse.Namespace) -> None:
    check_new_file(options.out, options.overwrite, options.model)
    if options.rank < 0:
        raise InvalidSettings(f"--rank is {options.rank}; it must be 0, for the least that is exact, or more.")
    model = load_chosen_model(options)
    deltas, manifest, noise = _read(options, model)
    with terminal_progress() as progress:
        deltas, error = reshaped(deltas, options.to, options.rank, noise, progress)
    manifest = after_loss(manifest, error)
    stored = write_erasure(options.out, Erasure(deltas, manifest), model)
    result = {
        "path": str(options.out),
        "layers": len(deltas),
        "conversion_error": error,
        "storage_error": stored.storage_error,
        **missing_of(manifest.settings),
        "bytes": options.out.stat().st_size,
    }
    print(json.dumps(result) if options.json else _as_text(result))


def _as_text(result: dict[str, Any]) -> str:
    text = (
        f"{result['path']}: {result['layers']} layers, {result['bytes']} bytes; relative error of the conversion "
        f"{result['conversion_error']:.1e}, of the storage {result['storage_error']:.1e}"
    )
    return f"{text}\n{not_kept(result)}".rstrip("\n")
