"""add up several erasures, each at its strength, in one file"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..combining import Part, merge
from ..erasure_file import write_erasure
from .erasure_arguments import add_other_base_argument, read_all
from .model_arguments import add_model_arguments, load_chosen_model
from .terminal import check_new_file, terminal_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]", help="erasures of one base model")
    add_model_arguments(parser, "the base model they were made on")
    add_other_base_argument(parser, "add up")
    parser.add_argument("--out", type=Path, required=True, help="the new erasure file (.safetensors)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> None:
    check_new_file(options.out, options.overwrite, options.model)
    parts = read_all(options.files)
    model = load_chosen_model(options)
    with terminal_progress() as progress:
        weighted = [Part(stored, strength, strength) for stored, strength in parts]
        erasure = merge(model, weighted, options.allow_other_base, progress)
    stored = write_erasure(options.out, erasure, model)
    result = {
        "path": str(options.out),
        "parts": len(parts),
        "layers": len(erasure.deltas),
        "storage_error": stored.storage_error,
    }
    print(
        json.dumps(result) if options.json else f"{options.out}: {len(parts)} erasures in {len(erasure.deltas)} layers"
    )
