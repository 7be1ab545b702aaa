"""add up several erasures, each at its strength, in one file"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..algebra import merged
from ..delta import DeltaSet
from ..erasure_file import Erasure, StoredErasure, write_erasure
from ..fingerprint import fingerprint, sketch
from ..manifest import Manifest
from ..model import LoadedModel
from ..version import __version__
from .erasure_arguments import read_all
from .terminal import check_new_file, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]", help="erasures of one base model")
    parser.add_argument("--model", type=Path, required=True, help="the base model they were made on")
    parser.add_argument("--out", type=Path, required=True, help="the new erasure file (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def merged_manifest(
    parts: Sequence[tuple[StoredErasure, float]], model: LoadedModel, deltas: DeltaSet, operation: str
) -> Manifest:
    """A manifest for what was made of several files: all their words, and where each part came from."""
    known = [(stored.manifest, strength) for stored, strength in parts if stored.manifest is not None]
    alternatives = {manifest.alternative for manifest, _ in known}
    changed = deltas.changed()
    origin = [
        {"file": stored.path.name, "strength": strength, "method": stored.manifest.method if stored.manifest else None}
        for stored, strength in parts
    ]
    return Manifest(
        words=tuple(dict.fromkeys(word for manifest, _ in known for word in manifest.words)) or ("unknown",),
        alternative=alternatives.pop() if len(alternatives) == 1 else None,
        keep=tuple(dict.fromkeys(prompt for manifest, _ in known for prompt in manifest.keep)),
        method=operation,
        method_status="made from finished erasures; figures of the parts do not carry over",
        settings={"parts": origin},
        steps_done=0,
        family=model.family,
        base_fingerprint=fingerprint(model, changed),
        base_sketch=sketch(model, changed),
        prediction=model.schedule.prediction,
        product_version=__version__,
    )


def run(options: argparse.Namespace) -> None:
    check_new_file(options.out, options.overwrite)
    parts = read_all(options.files)
    model = load_model(options.model, "cpu", pictures=False)
    deltas = merged([(stored.bind(model), strength) for stored, strength in parts])
    manifest = merged_manifest(parts, model, deltas, "merge")
    if len(parts) == 1 and parts[0][0].manifest is not None:
        manifest = replace(manifest, method="scale")
    stored = write_erasure(options.out, Erasure(deltas, manifest), model)
    result = {
        "path": str(options.out),
        "parts": len(parts),
        "layers": len(deltas),
        "storage_error": stored.storage_error,
    }
    print(json.dumps(result) if options.json else f"{options.out}: {len(parts)} erasures in {len(deltas)} layers")
