"""The badge of a node as its script makes it, in Node.js with stand-ins for the browser and the host's modules."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pack_nodes import PACK, Nodes

PAGE = """
const made = () => ({
  style: {}, children: [],
  append(...more) { this.children.push(...more); },
  replaceChildren(...more) { this.children = more; },
  get text() { return (this.textContent ?? "") + this.children.map((child) => child.text).join("\\n"); },
});
globalThis.document = { createElement: made, createElementNS: () => ({ ...made(), setAttribute() {} }) };
"""
API = """
export const waiting = {};
export const api = { fetchApi: (path) => new Promise((done) => (waiting[path.split("=")[1]] = done)) };
"""


def seen(tmp_path: Path, script: str) -> Any:
    """What a script that imports the front end's modules prints as JSON."""
    if shutil.which("node") is None:
        pytest.skip("needs node")
    pack, host = tmp_path / "extensions" / "pack", tmp_path / "scripts"
    shutil.copytree(ROOT / "web", pack, ignore=shutil.ignore_patterns("docs"))
    host.mkdir()
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (host / "api.js").write_text(API)
    (host / "app.js").write_text("export const app = {};")
    (tmp_path / "page.js").write_text(PAGE)
    begin = 'import "./page.js";\nimport { waiting } from "./scripts/api.js";\n'
    begin += (
        'import { Badge } from "./extensions/pack/badge.js";\nimport { LossChart } from "./extensions/pack/chart.js";\n'
    )
    begin += "const answer = (file, told) => waiting[file]({ json: async () => told });\n"
    (tmp_path / "test.js").write_text(begin + script)
    done = subprocess.run(["node", str(tmp_path / "test.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_late_answer_does_not_show_a_file_that_is_no_longer_chosen(tmp_path: Path) -> None:
    script = """
const badge = new Badge();
const slow = badge.read("slow"), quick = badge.read("quick");
answer("quick", { file: "quick", plain: true });
await quick;
answer("slow", { file: "slow", plain: true });
await slow;
const chosen = badge.root.text;
const late = badge.read("late");
badge.show([{ file: "ran", plain: true }]);
answer("late", { file: "late", plain: true });
await late;
console.log(JSON.stringify([chosen, badge.root.text]));
"""
    chosen, ran = seen(tmp_path, script)
    assert "quick" in chosen and "slow" not in chosen
    assert "ran" in ran and "late" not in ran


def test_foreign_weights_are_told_from_plain_loras_and_from_files_that_cannot_be_used(tmp_path: Path) -> None:
    script = """
const told = [{ foreign: true }, { plain: true }, { problem: "damaged" }].map((what) => {
  const badge = new Badge();
  badge.show([{ file: "a file", ...what }]);
  return badge.root.text;
});
console.log(JSON.stringify(told));
"""
    foreign, plain, damaged = seen(tmp_path, script)
    assert "Weights of other software" in foreign and "cannot be used" not in foreign
    assert "A plain LoRA" in plain and "cannot be used. damaged" in damaged


def test_what_a_conversion_lost_stands_on_the_badge(tmp_path: Path) -> None:
    script = """
const badge = new Badge();
badge.show([{ file: "x", words: ["ball"], missing: "Not read: 3 tensors." }]);
console.log(JSON.stringify(badge.root.text));
"""
    assert "missing: \nNot read: 3 tensors." in seen(tmp_path, script)


MEASURED: dict[str, Any] = json.loads(Path(__file__).with_name("measured.json").read_text(encoding="utf-8"))
"""What a Report Card wrote into a file: *cup*, erased with Combined from the bundled model."""


def badge(nodes: Nodes, measured: dict[str, Any]) -> dict[str, Any]:
    manifest: Any = importlib.import_module(f"{PACK}.erasure_core.manifest").Manifest
    words = tuple(MEASURED["report_card"]["concept"])
    about = ("auto", "a combination of our own", {}, 200, "sd1", "0dc2dfd0de0abe2b", [], "epsilon")
    made: dict[str, Any] = importlib.import_module(f"{PACK}.nodes.badge").badge_of(
        "cup.safetensors", manifest(words, "ball", (), *about, measured=measured)
    )
    return made


def test_a_report_card_is_a_few_words_on_the_badge(nodes: Nodes, tmp_path: Path) -> None:
    told = badge(nodes, MEASURED)
    assert told["summary"] == (
        "leak: named 0% of 60, other words 0% of 370, search 0% of 60, no text 53% of 15; "
        "kept: look-alikes 62% of 8, the lowest; no protection against who has the weights"
    )
    assert told["measured"] == MEASURED
    card = MEASURED["report_card"]
    assert all(said in told["details"] for said in (*card["verdict"], *card["threat_model"]))
    script = f"""
const badge = new Badge();
badge.show([{json.dumps(told)}]);
const title = (row) => [row.title ?? "", ...row.children.flatMap(title)];
console.log(JSON.stringify([badge.root.text, title(badge.root)]));
"""
    text, titles = seen(tmp_path, script)
    assert told["summary"] in text and len(text) < 450 and "cup, mug, tea, hoop +8" in text
    assert told["details"] in titles and ", ".join(card["concept"]) in titles


@pytest.mark.parametrize(
    ("measured", "summary"),
    [
        ({}, ""),
        ({"report_card": {"leak": {"named": {"share": "all", "count": 1}}}}, 'report_card {"leak": {"named":'),
        ({"report_card": [1]}, "report_card [1]"),
        ({"clip score": 0.123456}, "clip score 0.1235"),
        (
            {"report_card": {**MEASURED["report_card"], "leak_judged": False, "retention": {}}},
            "leaks could not be told; ",
        ),
    ],
    ids=["nothing", "a stranger's", "a list", "another figure", "not judged"],
)
def test_other_figures_stay_short_too(nodes: Nodes, measured: dict[str, Any], summary: str) -> None:
    told = badge(nodes, measured)["summary"]
    assert told.startswith(summary) and bool(told) == bool(summary) and len(told) < 90


def test_a_method_that_solves_at_once_promises_no_loss(tmp_path: Path) -> None:
    script = """
const said = ["waiting", "noTraining"].map((state) => new LossChart(state).state.textContent);
console.log(JSON.stringify(said));
"""
    trains, solves = seen(tmp_path, script)
    assert "while it trains" in trains and "no loss" in solves
