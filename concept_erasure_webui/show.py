"""HTML of the tab. Everything that a file, a prompt or an error says is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from erasure_core.library import Entry, Library

from . import places
from .jobs import Job

WIDTH, HEIGHT, POINTS = 600, 160, 300
COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8590c")


def message(text: str, is_error: bool = False) -> str:
    return f"<p class='{'error' if is_error else 'concept-erasure-message'}'>{html.escape(text)}</p>"


def job(found: Job | None) -> str:
    """The "last job" view."""
    if found is None:
        return message("Nothing was done yet.")
    where = f", {found.stage} {found.step} of {found.total}" if found.total and found.status != "done" else ""
    left = f", about {found.left:.0f} s left of this" if found.status == "running" and found.left else ""
    head = f"<b>{html.escape(found.title)}</b>: {html.escape(found.status)}, {found.seconds:.0f} s"
    told = message(found.message, is_error=found.status == "failed")
    return f"<div>{head}{html.escape(where)}{left}</div>{told}{_picture(found)}{curve(found.losses)}"


def _picture(found: Job) -> str:
    if not found.picture:
        return ""
    painted, content = html.escape(found.painted), f"data:image/jpeg;base64,{html.escape(found.picture)}"
    image = f"<img alt='{painted}' style='width:100%;max-width:512px' src='{content}'>"
    told = f"<figcaption>{painted}</figcaption>"
    return f"<figure id='concept_erasure_before_after' style='margin:0'>{image}{told}</figure>"


def curve(losses: Sequence[dict[str, float]]) -> str:
    """The loss terms of a training as an inline drawing, each scaled to its own largest value."""
    if len(losses) < 2:
        return ""
    step = max(1, len(losses) // POINTS)
    names = list(losses[-1])
    lines, legend = [], []
    for place, name in enumerate(names):
        values = [terms.get(name, 0.0) for terms in losses[::step]]
        top = max((abs(value) for value in values), default=0.0) or 1.0
        colour = COLOURS[place % len(COLOURS)]
        spacing = WIDTH / max(1, len(values) - 1)
        spots = " ".join(f"{spacing * i:.1f},{HEIGHT * (1 - value / top):.1f}" for i, value in enumerate(values))
        lines.append(f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{spots}'/>")
        legend.append(f"<span style='color:{colour}'>{html.escape(name)} {values[-1]:.4g}</span>")
    box = f"viewBox='0 0 {WIDTH} {HEIGHT}' style='max-width:{WIDTH}px;width:100%;border:1px solid #8886'"
    return f"<svg {box} role='img' aria-label='loss'>{''.join(lines)}</svg><div>{' · '.join(legend)}</div>"


def library(found: Library, search: str = "") -> str:
    """A table of erasures: what, with which base and method, and what was measured."""
    wanted = search.strip().casefold()
    rows = [_row(entry) for entry in map(found.entry, found.names()) if not wanted or wanted in _text(entry)]
    head = "".join(f"<th>{title}</th>" for title in ("File", "Erases", "Instead", "Method", "Base", "Measured"))
    body = "".join(rows) or "<tr><td colspan='6'>No erasures here yet.</td></tr>"
    return f"<table id='concept_erasure_table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(entry: Entry) -> str:
    words = entry.manifest.words if entry.manifest else ()
    return f"{entry.name} {' '.join(words)}".casefold()


def _row(entry: Entry) -> str:
    if entry.problem:
        return _cells([entry.name, places.told(entry.problem), "", "", "", ""])
    if entry.manifest is None:
        return _cells([entry.name, "a LoRA without a description", "", "", "", ""])
    m = entry.manifest
    steps = f", {m.steps_done} steps" if m.steps_done else ""
    method = f"{m.method} ({m.method_status}){steps}"
    return _cells([entry.name, ", ".join(m.words), m.alternative or "", method, m.family, measured(m.measured)])


def measured(figures: dict[str, Any]) -> str:
    """The figures that the file states; their names tell the threat model."""
    return "; ".join(map(_figure, figures.items())) or "not measured"


def _figure(figure: tuple[str, Any]) -> str:
    name, value = figure
    sentences = value.get("verdict") if name == "report_card" and isinstance(value, dict) else None
    if not isinstance(sentences, list) or not sentences:
        return f"{name}: {value}"
    limits = value.get("threat_model")
    limit = f" {limits[0]}" if isinstance(limits, list) and limits else ""
    return f"report card: {' '.join(map(str, sentences))}{limit}"


def _cells(texts: Iterable[str]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>"
