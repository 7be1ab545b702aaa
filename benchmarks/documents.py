"""Fills docs/speed.md with tables made from committed results: no figure there is typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .goals import PROJECTED, goals_table
from .report import ESD, PUBLISHED, Result, read, rows_table, size, table, time
from .tried import tried_table
from .whole import all_seconds

BLOCK = re.compile(r"(<!-- speed:(\w+) -->\n).*?(<!-- /speed -->)", re.DOTALL)


def counted_table(rows: Sequence[Result]) -> str:
    """Operations and memory of trainings, by step and whole, with their ratio to the published ESD loop."""
    reference = {row["family"]: row for row in rows if row["name"] == ESD}
    seconds = [f"at {rate / 1e12:.0f} TFLOP/s" for rate in PROJECTED]
    head = ["model", "training", "steps", "TFLOP/step", "times fewer than ESD", "PFLOP, whole run", "of ESD's"]
    head += ["peak", "of ESD's"]
    head += ["with text encoders", "of ESD's"]
    lines = []
    for row in rows:
        esd, step = reference[row["family"]], row["student"] + row["pool"]
        memory = row["peak"] + row["text"]
        lines.append(
            [
                f"{row['family']}, {row['side']} px",
                row["name"],
                str(row["steps"]),
                f"{step / 1e12:.3g}",
                f"{(esd['student'] + esd['pool']) / step:.1f}",
                f"{_whole_run(row) / 1e15:.3g}",
                f"{_whole_run(row) / _whole_run(esd):.0%}",
                size(row["peak"]),
                f"{row['peak'] / esd['peak']:.0%}",
                size(memory),
                f"{memory / (esd['peak'] + esd['text']):.0%}",
                *(f"{step * row['steps'] / rate:.0f} s" for rate in PROJECTED),
            ]
        )
    return table([*head, *seconds], lines)


def _whole_run(row: Result) -> float:
    """Operations of all steps."""
    return float(row["steps"] * (row["student"] + row["pool"]))


def whole_runs(rows: Sequence[Result]) -> str:
    """What a whole run of our ``esd`` costs with its defaults, in whole runs of each published loop."""
    said = []
    for ours in (row for row in rows if row["name"] == "balanced"):
        beside = [row for row in rows if row["family"] == ours["family"] and row["name"].startswith(PUBLISHED)]
        ratios = (f"{_whole_run(ours) / _whole_run(row):.2g} times that of {row['name']}" for row in beside)
        said.append(f"- {ours['family']}, {ours['side']} px: {', '.join(ratios)}.")
    title = "A whole run of our `esd` with its defaults (`balanced`) but nothing in the concept's place, in operations"
    return f"{title}:\n\n" + "\n".join(said)


def curves_table(curves: Result) -> str:
    """How operations grow, relative to the first point of each curve, and to as many single runs."""
    head = ["in one run", "PFLOP", "relative", "of as many single runs"]
    lines = []
    for what, points in curves.items():
        first, single = points[0]
        for number, whole in points:
            of_single = f"{whole / (single * number / first):.0%}"
            lines.append([f"{number} {what}", f"{whole / 1e15:.3g}", f"{whole / single:.2f}", of_single])
    return table(head, lines)


def solved_table(result: Result) -> str:
    """The closed form over numbers of concepts, then the use of a file and of several."""
    head = ["concepts", "text encoders", "solve", "rank", "given up", "error", "rank at tolerance 0", "error there"]
    lines = [
        [
            str(s["concepts"]),
            time(s["encoding"]),
            time(s["solving"]),
            *(str(s["rank"]), f"{s['given_up']:.2%}", f"{s['error']:.1e}"),
            *(str(s["exact_rank"]), f"{s['exact_error']:.1e}"),
        ]
        for s in result["solved"]
    ]
    used = result["applied"]
    least = used["reading"] + used["touching"]
    file = (
        f"A file of {size(used['size'])}: reading its bytes and one pass over the weights it touches take "
        f"{time(least)}; reading, checking, matching to the model and recognising its base {time(used['binding'])} "
        f"({used['binding'] / least:.1f} times that); applying and taking off {time(used['applying'])}."
    )
    described = f"{result['family']}, {result['dtype']}, seed {result['seed']}; {result['machine']}."
    return f"{described} `{result['command']}`\n\n{table(head, lines)}\n\n{file}\n\n{stacked_table(result)}"


def stacked_table(result: Result) -> str:
    """Seconds of one prediction over the number of files on the model, and relative to none."""
    ways = ("stacked", "merged", "baked")
    lines = []
    for row in result["stacked"]:
        cells = [f"{time(row[way])} ({row[way] / row['none']:.2f})" for way in ways]
        lines.append([str(row["files"]), *cells])
    none = (
        f"One prediction at {result['side']} px without a file takes {time(result['stacked'][0]['none'])}; with files, "
    )
    return f"{none}and relative to that:\n\n{table(['files', *ways], lines)}"


def whole_table(result: Result) -> str:
    """Whole erasures with a method's defaults: seconds by stage. Of one that was stopped the whole is extrapolated."""
    stages = list(dict.fromkeys(stage for run in result["runs"] for stage in run["seconds"]))
    lines = [
        [
            *(run["method"], run["effort"], _whole_time(run)),
            *(time(run["seconds"].get(stage)) for stage in stages),
            str(run["steps"]) if run["done"] == run["steps"] else f"{run['done']} of {run['steps']}",
            size(run["peak"]),
        ]
        for run in result["runs"]
    ]
    tiny = "tiny " if result["tiny"] else ""
    described = f"{tiny}{result['family']}, {result['side']} px, {result['dtype']}, seed {result['seed']}"
    head = ["method", "effort", "whole", *stages, "steps", "peak"]
    return f"{described}; {result['machine']}. `{result['command']}`\n\n{table(head, lines)}"


def _whole_time(run: Result) -> str:
    """The time of a whole erasure, marked where a part of it was not made."""
    taken = time(all_seconds(run))
    return f"{taken} (extrapolated)" if 0 < run["done"] < run["steps"] else taken


def execution_table(result: Result) -> str:
    """Other ways to run the network, relative to the one that is used."""
    used = result["ways"][0]
    lines = [
        [
            way["name"],
            f"{time(way['predicting'])} ({way['predicting'] / used['predicting']:.2f})",
            f"{time(way['training'])} ({way['training'] / used['training']:.2f})" if way["training"] else "",
            time(way["preparing"]),
        ]
        for way in result["ways"]
    ]
    head = ["network", "prediction", "with its backward pass", "until the first of each was done"]
    tiny = "tiny " if result["tiny"] else ""
    described = f"{tiny}{result['family']}, {result['side']} px, {result['dtype']}, seed {result['seed']}"
    described = f"{described}, {result['batch']} latents in a call; {result['machine']}. `{result['command']}`"
    return f"{described}\n\n{table(head, lines)}"


def every_table(content: Result) -> str:
    """What every method did to every model it was run on."""
    head = ["model", "method", "prediction moved by", "loaded by diffusers, off by", "allowed", "verdict"]
    parts = [f"`{content['command']}`"]
    for run in content["runs"]:
        tiny = "tiny " if run["tiny"] else ""
        where = f"{tiny}{run['family']}, {run['side']} px"
        lines = [
            [where, v["method"], f"{v['moved']:.1e}", f"{v['loaded']:.1e}", f"{v['bound']:g}", _sound(v["faults"])]
            for v in run["verdicts"]
        ]
        parts += [f"{where}, {run['dtype']}, seed {run['seed']}; {run['machine']}.", table(head, lines)]
    return "\n\n".join(parts)


def _sound(faults: Sequence[str]) -> str:
    return "; ".join(faults) or "as trained, restored to the bit"


NOTHING = "Nothing yet."


def _measured(folder: Path) -> str:
    found = [rows_table(result) for path in sorted(folder.glob("run_*.json")) for result in read(path)]
    return "\n\n".join(found) or NOTHING


def _counted(folder: Path) -> str:
    path = folder / "counted.json"
    if not path.exists():
        return NOTHING
    content = _load(path)
    grown = f"Growth, for {content['curve of']} with the defaults of `esd`:\n\n{curves_table(content['curves'])}"
    machine = content.get("machine", "a machine that was not noted")
    made = f"Counted on {machine}; no seed, for nothing in it is drawn at random. `{content['command']}`"
    return f"{made}\n\n{counted_table(content['rows'])}\n\n{whole_runs(content['rows'])}\n\n{grown}"


def _solved(folder: Path) -> str:
    return "\n\n".join(solved_table(_load(path)) for path in sorted(folder.glob("solve_*.json"))) or NOTHING


def _every(folder: Path) -> str:
    return "\n\n".join(every_table(_load(path)) for path in sorted(folder.glob("every_*.json"))) or NOTHING


def _wholes(folder: Path) -> str:
    return "\n\n".join(whole_table(_load(path)) for path in sorted(folder.glob("whole_*.json"))) or NOTHING


def _executions(folder: Path) -> str:
    return "\n\n".join(execution_table(_load(path)) for path in sorted(folder.glob("execution_*.json"))) or NOTHING


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


BLOCKS: dict[str, Callable[[Path], str]] = {
    "measured": _measured,
    "counted": _counted,
    "solved": _solved,
    "every": _every,
    "whole": _wholes,
    "execution": _executions,
    "goals": goals_table,
    "tried": tried_table,
}


def filled(text: str, results: Path) -> str:
    """A document with its blocks made anew from a folder of results."""

    def fresh(block: re.Match[str]) -> str:
        return f"{block[1]}{BLOCKS[block[2]](results)}\n{block[3]}"

    return BLOCK.sub(fresh, text)


def fill(results: Path, document: Path) -> None:
    """Write the figures into the document."""
    document.write_text(filled(document.read_text(encoding="utf-8"), results), encoding="utf-8")
