"""show what an erasure file says about itself and what it changes"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..delta import LowRankDelta
from ..erasure_file import StoredErasure, read_erasure
from ..methods import METHODS
from .model_arguments import add_model_arguments, load_chosen_model
from .terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an erasure file")
    add_model_arguments(parser, "also check that the file fits this model", required=False)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def describe(stored: StoredErasure) -> dict[str, Any]:
    """Everything worth knowing about a file, ready for JSON."""
    ranks = sorted({delta.rank for delta in stored.changes.values() if isinstance(delta, LowRankDelta)})
    norm = sum(delta.norm() ** 2 for delta in stored.changes.values()) ** 0.5
    described: dict[str, Any] = {
        "path": str(stored.path),
        "bytes": stored.path.stat().st_size,
        "layers": len(stored.changes),
        "form": f"low rank ({', '.join(map(str, ranks))})" if ranks else "dense",
        "norm": norm,
    }
    if stored.manifest is not None:
        described["manifest"] = json.loads(stored.manifest.to_json())
    return described


def run(options: argparse.Namespace) -> None:
    stored = read_erasure(options.file)
    described = describe(stored)
    if options.model is not None:
        stored.bind(load_chosen_model(options))
        described["fits"] = str(options.model)
    print(json.dumps(described) if options.json else _as_text(described))


def _as_text(described: dict[str, Any]) -> str:
    lines = [f"{described['path']}: {described['layers']} layers, {described['form']}, {described['bytes']} bytes"]
    manifest = described.get("manifest")
    if manifest is None:
        return "\n".join([*lines, "  no manifest: a plain LoRA that was not made by this software"])
    method = METHODS.get(manifest["method"])
    rows = {
        "erased": ", ".join(manifest["words"]),
        "instead": manifest["alternative"] or "(not chosen)",
        "kept": f"{len(manifest['keep'])} prompts",
        "method": f"{method.title if method else manifest['method']} ({manifest['method_status']})",
        "steps": manifest["steps_done"],
        "base": f"{manifest['family']}, fingerprint {manifest['base_fingerprint'][:16]}",
        "stored as": f"{manifest['dtype']}, relative error {manifest['storage_error']:.1e}",
        "measured": json.dumps(manifest["measured"]) if manifest["measured"] else "nothing yet",
        "fits": described.get("fits", "(not checked; give --model)"),
    }
    return "\n".join([*lines, *(f"  {name:<10} {printable(value)}" for name, value in rows.items())])
