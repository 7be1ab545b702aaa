"""Whole pages and tables of the library inside the tab. Each page stands in a frame that cannot reach the web UI."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

from erasure_core.boundary import Exploration, Point
from erasure_core.boundary.map_page import map_page

LISTED = 200
"""Candidates that the table shows; the map shows all of them."""
BRIDGE = (
    '<script>window.addEventListener("boundary-selection", (event) => '
    'parent.postMessage({ conceptErasureSelection: event.detail }, "*"));</script>'
)
"""Hands the words that are selected on the map to the web UI's page, and nothing else."""


def map_frame(found: Exploration) -> str:
    """The interactive map. Its scripts run, but as of a stranger's page: without this site's cookies and content."""
    page = map_page(found)
    body, end, rest = page.rpartition("</body>")
    frame = _frame(body + BRIDGE + end + rest, "allow-scripts allow-downloads", "Map of the boundary", 760)
    links = [_link("map.html", page, "text/html"), _link("exploration.json", found.to_json(), "application/json")]
    return frame + _downloads(links)


def report_frame(page: str, figures: str) -> str:
    """The report card, which has no scripts and gets no rights."""
    links = [_link("report.html", page, "text/html"), _link("report.json", figures, "application/json")]
    return _frame(page, "", "Report card", 900) + _downloads(links)


def _frame(page: str, rights: str, title: str, height: int) -> str:
    return (
        f'<iframe class="concept-erasure-page" sandbox="{rights}" allow="clipboard-write" title="{title}" '
        f'style="width:100%;height:{height}px;border:1px solid #8886;border-radius:6px;background:#fff" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def _link(name: str, content: str, kind: str) -> str:
    encoded = base64.b64encode(content.encode()).decode()
    return f'<a download="{name}" href="data:{kind};base64,{encoded}">{name}</a>'


def _downloads(links: Sequence[str]) -> str:
    return f'<p class="concept-erasure-downloads">Download: {" · ".join(links)}</p>'


def reaching(points: Sequence[Point]) -> str:
    """How many reach the concept, counted as the summary counts them: what can be typed, and what no text gives."""
    typed = [point.leaks for point in points if point.is_text]
    beyond = [point.leaks for point in points if not point.is_text]
    more = f", {sum(beyond)} of {len(beyond)} embeddings that no text gives" if any(beyond) else ""
    return f"{sum(typed)} of {len(typed)} prompts reach it{more}"


def candidates(points: Sequence[Point], told: str = "") -> str:
    """A table of candidates, worst first; texts come from the vocabulary and from strangers and are escaped."""
    head = f"{reaching(points)}. {told}".strip()
    if not points:
        return f"<p class='concept-erasure-message'>{html.escape(told or 'Nothing was tried yet.')}</p>"
    columns = ("Prompt", "Verdict", "Steers to it", "Its pictures", "Found by", "Similarity", "Word to erase")
    titles = "".join(f"<th style='text-align:left;padding-right:1em'>{title}</th>" for title in columns)
    rows = "".join(_row(point) for point in points[:LISTED])
    rest = len(points) - LISTED
    more = f"<p>{rest} more are on the map.</p>" if rest > 0 else ""
    return (
        f"<p class='concept-erasure-message'>{html.escape(head)}</p>"
        f"<div style='max-height:320px;overflow:auto'><table id='concept_erasure_candidates_table'>"
        f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>{more}"
    )


def _row(point: Point) -> str:
    seen = "" if point.evidence is None else "show it" if point.evidence > 0 else "do not"
    verdict = "reaches it, hidden" if point.hidden else "reaches it" if point.leaks else ""
    share = f"{point.leak:.1%}"
    texts = (point.text, verdict, share, seen, point.origin, f"{point.similarity:.2f}", point.word)
    return "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>"


def verdicts(card: Any) -> str:
    """What may be concluded of each file, above the page."""
    parts = []
    for file in card.files:
        sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in file.verdict)
        parts.append(f"<div><b>{html.escape(file.name)}</b><ul>{sentences}</ul></div>")
    return "".join(parts)
