"""add up several erasures, each at its strength, in one file"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..algebra import merged
from ..concept import Concept
from ..erasing import describe
from ..erasure_file import Erasure, StoredErasure, write_erasure
from .erasure_arguments import read_all
from .terminal import check_new_file, load_model

UNKNOWN = "unknown"
"""What a plain LoRA without a manifest is said to erase."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]", help="erasures of one base model")
    parser.add_argument("--model", type=Path, required=True, help="the base model they were made on")
    parser.add_argument("--out", type=Path, required=True, help="the new erasure file (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _all_words(parts: Sequence[tuple[StoredErasure, float]]) -> Concept:
    """What all parts erase and keep together."""
    known = [stored.manifest for stored, _ in parts if stored.manifest is not None]
    alternatives = {manifest.alternative for manifest in known}
    words = tuple(word for manifest in known for word in manifest.words) or (UNKNOWN,)
    keep = tuple(prompt for manifest in known for prompt in manifest.keep)
    erased = Concept(words)
    # One part's kept prompt may be another part's concept.
    kept = tuple(prompt for prompt in keep if prompt not in {said for said, _ in erased.prompts()})
    return Concept(words, alternatives.pop() if len(alternatives) == 1 else None, kept)


def run(options: argparse.Namespace) -> None:
    check_new_file(options.out, options.overwrite)
    parts = read_all(options.files)
    model = load_model(options.model, "cpu", pictures=False)
    deltas = merged([(stored.bind(model), strength) for stored, strength in parts])
    origin = [{"file": stored.path.name, "strength": strength} for stored, strength in parts]
    status = "made from finished erasures; figures of the parts do not carry over"
    manifest = describe(model, deltas, _all_words(parts), "merge", status, {"parts": origin})
    stored = write_erasure(options.out, Erasure(deltas, manifest), model)
    result = {
        "path": str(options.out),
        "parts": len(parts),
        "layers": len(deltas),
        "storage_error": stored.storage_error,
    }
    print(json.dumps(result) if options.json else f"{options.out}: {len(parts)} erasures in {len(deltas)} layers")
