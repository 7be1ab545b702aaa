"""What a node shows of an erasure: base, method, what is erased, what was measured; plain data for the browser."""

from __future__ import annotations

import json
from typing import Any

from ..erasure_core.boundary.candidate import NAMED
from ..erasure_core.boundary.verdict import ATTACKS, BEYOND, UNNAMED
from ..erasure_core.foreign import missing_of, not_kept
from ..erasure_core.manifest import Manifest
from ..erasure_core.methods import METHODS

THREATS = {"named": (NAMED,), "other words": UNNAMED, "search": ATTACKS, "no text": tuple(BEYOND)}
"""What a badge has room for, and the attacks of a report card that it stands for."""
REACH = "no protection against who has the weights"
"""The threat model of a report card, in the words that a badge has room for."""
CLIPPED = 60
"""Characters of other figures on a badge; all are in its tooltip."""


def summary(measured: dict[str, Any]) -> str:
    """What was measured, in a few words; empty where nothing was. Entries may be a stranger's."""
    card, others = _report_card(measured)
    told = [_clip(f"{name} {_plain(value)}") for name, value in others.items()]
    return "; ".join([*([_leaks(card), *_kept(card), REACH] if card else []), *told])


def details(measured: dict[str, Any]) -> str:
    """All sentences of a report card and its whole threat model, and other figures as they stand."""
    card, others = _report_card(measured)
    said = [str(line) for part in ("verdict", "threat_model") for line in _list(card.get(part))]
    return "\n".join([*said, *(f"{name}: {_plain(value)}" for name, value in others.items())])


def _report_card(measured: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of the Report Card, and all others."""
    card = measured.get("report_card")
    if not isinstance(card, dict) or not _shares(card.get("leak")):
        return {}, measured
    return card, {name: value for name, value in measured.items() if name != "report_card"}


def _leaks(card: dict[str, Any]) -> str:
    if card.get("leak_judged") is False:
        return "leaks could not be told"
    leak = _shares(card["leak"])
    found = {name: [leak[attack] for attack in attacks if attack in leak] for name, attacks in THREATS.items()}
    return "leak: " + ", ".join(_rate(name, shares) for name, shares in found.items())


def _rate(name: str, shares: list[tuple[float, int]]) -> str:
    count = sum(count for _, count in shares)
    hits = sum(share * count for share, count in shares)
    return f"{name} {hits / count:.0%} of {count}" if count else f"{name} not tried"


def _kept(card: dict[str, Any]) -> list[str]:
    """The group that was kept worst, as in the verdict."""
    kept = _shares(card.get("retention"))
    worst = min(kept, key=lambda name: kept[name][0], default=None)
    return [] if worst is None else [f"kept: {_clip(worst)} {kept[worst][0]:.0%} of {kept[worst][1]}, the lowest"]


def _shares(figures: Any) -> dict[str, tuple[float, int]]:
    """Shares and counts by name, of what can be read as such."""
    found = {}
    for name, one in figures.items() if isinstance(figures, dict) else ():
        share, count = (one.get(key) if isinstance(one, dict) else None for key in ("share", "count"))
        if isinstance(share, (int, float)) and isinstance(count, int) and 0 <= share <= 1 and count >= 0:
            found[name] = (float(share), count)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _clip(text: str) -> str:
    return text if len(text) <= CLIPPED else f"{text[:CLIPPED]}…"


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
        "summary": summary(manifest.measured),
        "details": details(manifest.measured),
        "hardened": hardened(manifest),
        "missing": missing(manifest),
        "version": manifest.product_version,
    }
