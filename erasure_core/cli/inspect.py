"""show what an erasure file says about itself and what it changes"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..chosen_words import in_place
from ..delta import LowRankDelta
from ..erasure_file import StoredErasure, read_erasure
from ..errors import WrongBase
from ..methods import METHODS
from .erasure_arguments import add_other_base_argument
from .model_arguments import add_model_arguments, load_chosen_model
from .terminal import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an erasure file")
    add_model_arguments(parser, "also check that the file fits this model", required=False)
    add_other_base_argument(parser, "let pass, and tell,")
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
        model = load_chosen_model(options)
        try:
            stored.bind(model)
        except WrongBase:
            if not options.allow_other_base:
                raise
            stored.bind(model, allow_other_base=True)
            described["other_base"] = True
        described["fits"] = str(options.model)
    print(json.dumps(described) if options.json else _as_text(described))


def _as_text(described: dict[str, Any]) -> str:
    lines = [
        f"{printable(described['path'])}: {described['layers']} layers, {described['form']}, {described['bytes']} bytes"
    ]
    manifest = described.get("manifest")
    if manifest is None:
        return "\n".join([*lines, "  no manifest: a plain LoRA that was not made by this software"])
    method = METHODS.get(manifest["method"])
    rows = {
        "erased": ", ".join(manifest["words"]),
        "instead": in_place(manifest["alternative"], manifest["instead"]) or "(not chosen)",
        "parts": _parts(manifest["settings"]),
        "kept": f"{len(manifest['keep'])} prompts",
        "method": f"{method.title if method else manifest['method']} ({manifest['method_status']})",
        "steps": manifest["steps_done"],
        "base": f"{manifest['family']}, fingerprint {manifest['base_fingerprint'][:16]}",
        "stored as": f"{manifest['dtype']}, relative error {manifest['storage_error']:.1e}",
        "measured": "" if manifest["measured"] else "nothing yet",
        "fits": described.get("fits", "(not checked; give --model)")
        + (", though made on another base" if "other_base" in described else ""),
    }
    rows = {name: value for name, value in rows.items() if name != "parts" or value}
    lines += [f"  {name:<10} {printable(value)}".rstrip() for name, value in rows.items()]
    place = 1 + list(rows).index("measured") + 1
    return "\n".join([*lines[:place], *_told(manifest["measured"], 2), *lines[place:]])


def _parts(settings: dict[str, Any]) -> str:
    """The files that a merged one was made of, with the strengths they have in it."""
    parts = settings.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return ""
    named = ", ".join(f"{part.get('file')} at {part.get('strength')}" for part in parts)
    return f"{named}; some may have been made on another base" if "other_base_allowed" in settings else named


def _told(value: dict[str, Any] | list[Any], depth: int) -> Iterator[str]:
    """What a manifest says of measurements, which may be anything, as indented lines; shares as the report card has
    them."""
    named = value.items() if isinstance(value, dict) else (("-", item) for item in value)
    for name, item in named:
        label = "  " * depth + printable(name) + (":" if isinstance(value, dict) else "")
        if isinstance(item, dict) and _is_share(item):
            yield f"{label} {item['share']:.0%} of {item['count']} ({item['low']:.0%} to {item['high']:.0%})"
        elif isinstance(item, (dict, list)) and item:
            yield label
            yield from _told(item, depth + 1)
        else:
            yield f"{label} {printable(item)}"


def _is_share(item: dict[str, Any]) -> bool:
    return item.keys() == {"share", "count", "low", "high"} and all(type(n) in (int, float) for n in item.values())
