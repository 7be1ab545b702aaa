"""The report card as one HTML page: no scripts, no network, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from ..errors import InvalidFile, InvalidSettings
from ..manifest import Manifest
from ..safe_files import read_tensors, write_files, write_tensors
from .candidate import ORIGINS
from .drawing import DIM, FAINT, INK, PALETTE, Sheet, night_style
from .map import map_svg
from .map_page import map_page
from .report_card import SAMPLER, FileReport, ReportCard, Share, measured_entry

STYLE = Path(__file__).with_name("report.css")


def _cell(share: Share | None, judged: bool = True) -> str:
    if share is None or not judged:
        return "<td>–</td>" if share is None else "<td>not judged</td>"
    interval = f"({share.low:.0%}–{share.high:.0%})"
    return f"<td>{share.share:.0%} <small>{interval}</small><br><small>of {share.count}</small></td>"


def _table(head: str, rows: Sequence[tuple[str, Sequence[str]]], columns: Sequence[str]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>" for name, cells in rows)
    return f"<table><tr><th>{escape(head)}</th>{heads}</tr>{body}</table>"


def _leak_table(card: ReportCard) -> str:
    origins = [name for name in ORIGINS if any(name in file.leak for file in card.files)]
    columns = [label for file in card.files for label in ("untouched, by direction", file.name)]
    rows = [
        (ORIGINS[o], [_cell(part.get(o), file.judged) for file in card.files for part in (file.yardstick, file.leak)])
        for o in origins
    ]
    return _table("prompts that reach the concept", rows, columns)


def _retention_table(card: ReportCard) -> str:
    groups = list(card.files[0].retention)
    rows = [(group, [_cell(file.retention[group]) for file in card.files]) for group in groups]
    rows += [
        (f"{group}: mean change of the guidance", [f"<td>{file.change[group]:.0%}</td>" for file in card.files])
        for group in groups
    ]
    rows.append(("no prompt: largest drift", [f"<td>{max(v for _, v in f.drift):.1%}</td>" for f in card.files]))
    return _table("prompts that steer as before", rows, [file.name for file in card.files])


def chart(
    title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], across: str, top: float = 1.0
) -> Sheet:
    """Curves over one axis; shares from 0 to ``top``."""
    sheet = Sheet(430, 270)
    left, high, right, low = 52, 34, 416, 196
    xs = [x for _, curve in curves for x, _ in curve] or [0.0]
    first, last = min(xs), max(max(xs), min(xs) + 1e-9)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - first) / (last - first) * (right - left), low - min(1.0, y / top) * (low - high)

    sheet.text((left, 20), title, 13)
    for step in range(5):
        y = at(first, top * step / 4)[1]
        sheet.line([(left, y), (right, y)], FAINT, 0.6)
        sheet.text((left - 6, y + 4), f"{100 * top * step / 4:.3g} %", 10.5, DIM, "end")
    for share in (0.0, 0.5, 1.0):
        x = first + share * (last - first)
        sheet.text((at(x, 0)[0], low + 16), f"{x:g}", 10.5, DIM, "middle")
    sheet.text(((left + right) / 2, low + 32), across, 11, INK, "middle")
    for number, (name, curve) in enumerate(curves):
        colour = PALETTE[number % len(PALETTE)]
        sheet.line([at(x, y) for x, y in curve], colour, 2)
        for x, y in curve:
            sheet.circle(at(x, y), 2.6, colour)
        column, row = number % 2, number // 2
        sheet.circle((left + 190 * column, low + 50 + 16 * row - 4), 4, colour)
        sheet.text((left + 190 * column + 9, low + 50 + 16 * row), name[:28], 11)
    return sheet


def charts(card: ReportCard) -> list[Sheet]:
    """Leak and retention over strength, and the drift over timesteps."""
    sweep, drifted = [], []
    for file in card.files:
        if file.judged:
            sweep.append((f"{file.name}: leak", [(s, leak) for s, leak, _ in file.sweep]))
        if kept_curve := [(s, kept) for s, _, kept in file.sweep if kept is not None]:
            sweep.append((f"{file.name}: kept", kept_curve))
        drifted.append((file.name, [(float(t), value) for t, value in file.drift]))
    top = max([0.02, *(value for _, curve in drifted for _, value in curve)]) * 1.1
    return [
        chart("Leak (by direction) and retention over strength", sweep, "strength"),
        chart("Drift without a prompt", drifted, "timestep: 0 is clean, right is noise", top),
    ]


def _charts(card: ReportCard) -> str:
    drawn = "".join(sheet.svg(title) for sheet, title in zip(charts(card), ("strength sweep", "drift"), strict=True))
    return f'<div class="charts">{drawn}</div>'


def _strips(card: ReportCard) -> str:
    why = f'<p class="note">{escape(card.not_painted)}</p>' if card.not_painted else ""
    if not card.strips:
        return why
    columns = ["untouched", *(file.name for file in card.files)]
    rows = [
        (
            f"{strip.prompt} ({strip.kind})",
            [f'<td><img src="{escape(uri)}" width="128" alt="{escape(strip.prompt)}"></td>' for uri in strip.pictures],
        )
        for strip in card.strips
    ]
    return _table("same seed", rows, columns).replace("<table>", '<table class="strip">') + why


def _verdicts(card: ReportCard) -> str:
    parts = []
    for file in card.files:
        named = file.leak.get("named")
        bad = " bad" if (named is not None and named.share > 0.25) or not file.judged else ""
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in file.verdict)
        parts.append(f'<div class="verdict{bad}"><b>{escape(file.name)}</b><ul>{items}</ul></div>')
    return "".join(parts)


def _about(file: FileReport) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {item}" for key, item in value.items())
        return str(value)

    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text(value))}</td></tr>" for name, value in file.about.items()
    )
    return f"<h3>{escape(file.name)} at strength {file.strength:g}</h3><table>{rows}</table>"


def _how(settings: Mapping[str, Any]) -> str:
    """What to set for the same report once more."""
    calls, seconds = settings["calls"], settings["seconds"]
    return (
        f"seed {settings['seed']}; each search {f'{calls} predictions' if calls else f'{seconds:g} s'} at "
        f"{settings['states']} noisy latents; pictures by {SAMPLER} in {settings['steps']} steps at guidance "
        f"{settings['guidance']:g}"
    )


def report_page(card: ReportCard, maps: Sequence[str] = ()) -> str:
    """HTML of the report card; ``maps`` are the names of the interactive maps beside it, one for each file."""
    links = [f'<p><a href="{escape(name)}">interactive map</a></p>' for name in maps] or [""] * len(card.files)
    words = escape(", ".join(card.words))
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in card.limits)
    drawn = "".join(
        f"<div><h3>{escape(f.name)}</h3>{map_svg(e)}{link}</div>"
        for f, e, link in zip(card.files, card.explorations, links, strict=True)
    )
    alike = ", ".join(card.look_alikes) or "none"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Report card: {words}</title><style>{STYLE.read_text(encoding="utf-8")}{night_style()}</style></head><body>
<h1>Report card: {words}</h1>
<p class="note">Measured on the loaded model, {_how(card.settings)}. In brackets: 95 % interval (Wilson).</p>
{_verdicts(card)}
<div class="limits"><b>What this does not say</b><ul>{limits}</ul></div>
<h2>Leak: lower is better</h2>{_leak_table(card)}
<p class="note">A file's own column counts what most pictures confirm, where there was time for a look. The untouched
model and the strengths below are judged by directions alone, without pictures, and so rather too strictly.</p>
<h2>Retention: higher is better</h2>{_retention_table(card)}
<p class="note">Look-alikes, found among the prompts to keep and everyday ones: {escape(alike)}.</p>
<h2>Strength and drift</h2>{_charts(card)}
<h2>Pictures</h2>{_strips(card)}
<h2>Map of what was found</h2><div class="charts">{drawn}</div>
<h2>About the files</h2>{"".join(map(_about, card.files))}
</body></html>
"""


def write_report(card: ReportCard, folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.json`` and the interactive map of each file.

    Raises:
        OutputError: as ``write_files``.
    """
    count = len(card.explorations)
    maps = ["map.html"] if count == 1 else [f"map_{number + 1}.html" for number in range(count)]
    written = {"report.html": report_page(card, maps), "report.json": card.to_json()}
    written |= {name: map_page(exploration) for name, exploration in zip(maps, card.explorations, strict=True)}
    write_files(folder, {name: content.encode() for name, content in written.items()})
    return [folder / name for name in written]


def refuse_other_figures(path: Path, manifest: Manifest | None, words: Sequence[str], strength: float) -> None:
    """Asked before a measurement whose figures are to be written into a file: they must be of the file as it is.

    Raises:
        InvalidFile: the file has no manifest.
        InvalidSettings: the strength is not 1, or a word is measured that the file does not erase.
    """
    if manifest is None:
        raise InvalidFile(f"{path} has no manifest to write the figures into; it was not made by this software.")
    if strength != 1.0:
        raise InvalidSettings(
            f"The figures of {path} at strength {strength:g} cannot be written into the file, where they would be "
            "taken for those of its full strength. Measure it at strength 1, or do not write them."
        )
    erased = {word.casefold() for word in manifest.concept.words}
    foreign = [word for word in words if word.casefold() not in erased]
    if foreign:
        raise InvalidSettings(
            f"{path} does not erase {foreign[0]!r}, so figures of that cannot be written into it. Measure the concept "
            "that it erases, or do not write them."
        )


def merge_into_manifest(path: Path, card: ReportCard, number: int = 0) -> None:
    """Write the figures into a file's own manifest; the stored change stays bit for bit.

    Raises:
        InvalidFile: the file has no manifest, or is damaged.
        InvalidSettings: as ``refuse_other_figures``.
        OutputError: it cannot be written.
    """
    tensors, metadata = read_tensors(path)
    manifest = Manifest.from_json(metadata["erasure"]) if "erasure" in metadata else None
    refuse_other_figures(path, manifest, card.words, card.files[number].strength)
    assert manifest is not None
    measured = {**manifest.measured, **measured_entry(card, number)}
    write_tensors(path, tensors, {**metadata, "erasure": replace(manifest, measured=measured).to_json()})
