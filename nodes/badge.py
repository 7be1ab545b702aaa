"""What a node shows of an erasure: base, method, what is erased, what was measured; plain data for the browser."""

from __future__ import annotations

from typing import Any

from ..erasure_core.foreign import missing_of, not_kept
from ..erasure_core.manifest import Manifest
from ..erasure_core.methods import METHODS


def hardened(manifest: Manifest) -> str:
    """What hardening did, in one sentence; empty where there was none, or where a stranger wrote something else."""
    rounds = manifest.settings.get("harden")
    if not isinstance(rounds, list) or not rounds or not all(isinstance(one, dict) for one in rounds):
        return ""
    lists = [one["added"] for one in rounds if isinstance(one.get("added"), list)]
    added = [str(word) for words in lists for word in words]
    leaking = ", then ".join(f"{one.get('leaking')} of {one.get('tried')}" for one in rounds)
    words = f"; erased too: {', '.join(added)}" if added else ""
    return f"Searched {len(rounds)} times, {leaking} prompts leaked{words}."


def missing(manifest: Manifest) -> str:
    """What a conversion of foreign weights could not take over, in a sentence or two; empty where it took all."""
    told = missing_of(manifest.settings)
    said = [not_kept(told)] if told["left_out"] else []
    if told["unread"]:
        said.append(
            f"Not read: {told['unread']} tensors that this model does not have, or that are of its text encoder where "
            "no CLIP was connected; if they belong to the erasure, that part of it is missing."
        )
    return " ".join(said)


def badge_of(file: str, manifest: Manifest | None, problem: str = "", foreign: bool = False) -> dict[str, Any]:
    """What the browser shows of a file; it writes these as text, never as HTML: a file may come from anyone.

    Args:
        file: its name.
        manifest: ``None`` where it has none.
        problem: why it cannot be used.
        foreign: it holds weights of other software, which are read only beside their model.
    """
    if manifest is None:
        return {"file": file, "problem": problem, "foreign": foreign, "plain": not problem and not foreign}
    method = METHODS.get(manifest.method)
    return {
        "file": file,
        "words": list(manifest.words),
        "alternative": manifest.alternative,
        "method": method.title if method else manifest.method,
        "status": manifest.method_status,
        "steps": manifest.steps_done,
        "family": manifest.family,
        "base": manifest.base_fingerprint[:12],
        "dtype": manifest.dtype,
        "storage_error": manifest.storage_error,
        "measured": manifest.measured,
        "hardened": hardened(manifest),
        "missing": missing(manifest),
        "version": manifest.product_version,
    }
