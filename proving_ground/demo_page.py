"""The demo's one-page summary."""

from __future__ import annotations

from html import escape

from erasure_core.manifest import Manifest

from .evaluation import LEAKS, Evaluation
from .figures import Figure

MEANING = {
    "named": "words that were given to the eraser",
    "unnamed": "other words for the same thing, never given",
    "descriptions": "descriptions without any of those words",
    "look-alikes": "the object that is drawn most alike",
    "kept": "all other objects",
    "attributes": "another attribute that a prompt for the concept asks for",
    "two objects": "the other object in a prompt for two",
    "intact": "share of these pictures that still show something sound",
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .35rem .9rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd } img { max-width: 100% }
small { color: #666 } td small { white-space: nowrap }
"""


def _cell(figure: Figure) -> str:
    low, high = figure.interval
    return f"<td>{figure.share:.0%} <small>({low:.0%} to {high:.0%})</small></td>"


def _table(title: str, names: list[str], figures: dict[str, Evaluation]) -> str:
    def row(name: str) -> str:
        every = [e.intact if name == "intact" else e.shares[name] for e in figures.values()]
        cells = "".join(map(_cell, every))
        return f"<tr><td>{name} <small>{MEANING[name]}</small></td>{cells}<td>{every[0].count}</td></tr>"

    heads = "".join(f"<th>{name}</th>" for name in figures)
    rows = "".join(map(row, names))
    return f"<table><tr><th>{title}</th>{heads}<th>pictures</th></tr>{rows}</table>"


def _still_reached(erased: Evaluation) -> str:
    """What to say of words that nobody named, where pictures of theirs still showed the concept."""
    unnamed = any(erased.shares[name].share for name in ("unnamed", "descriptions"))
    return " Words that nobody named can still reach the concept, as the second and third row show." if unnamed else ""


def page(manifest: Manifest, figures: dict[str, Evaluation], size: int, seconds: float) -> str:
    """HTML of the summary; ``figures`` holds the untouched model first, the erased one last."""
    words = escape(", ".join(manifest.words))
    retained = [name for name in next(iter(figures.values())).shares if name not in LEAKS]
    still = _still_reached(list(figures.values())[-1])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Erased: {words}</title><style>{STYLE}</style>
<h1>Erased: {words}</h1>
<p>Method: {escape(manifest.method)}, {manifest.steps_done} steps, seed {manifest.settings["seed"]}, in {seconds:.0f} s
on this machine. File: {size / 1000:.0f} kB, layers stored in {manifest.dtype}.</p>
<p><img src="before_after.png" alt="Pictures of the untouched and the erased model, with the same seeds"></p>
{_table("Leak: the concept is still seen (lower is better)", [*LEAKS, "intact"], figures)}
{_table("Retention: what was asked for is seen (higher is better)", retained, figures)}
<p>In brackets: 95 % bootstrap interval. The figures were measured on the small model that comes with this software, in
its own picture world, not on Stable Diffusion.{still} Whoever has the weights can undo the erasure.</p>
</html>
"""
