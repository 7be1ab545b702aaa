"""The benchmark's tables: made from result files, the untouched model and the floor first, intervals that hold."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erasure_core.errors import InvalidFile
from proving_ground import bench, pool_bench
from proving_ground.__main__ import main
from proving_ground.bench import Cell
from proving_ground.bench_goals import goal_rows, relative_rows
from proving_ground.bench_searches import SEARCHED
from proving_ground.bench_table import BEGIN, END, summary, tables, write_tables
from proving_ground.documents import DOCS
from proving_ground.evaluation import GROUPS, LEAKS
from proving_ground.figures import Figure, mean_of, norm_ratio_of


def figure(value: float, count: int = 96) -> dict[str, Any]:
    return {"value": value, "count": count, "interval": list(Figure("", value, count).interval)}


def result(method: str, concept: str, leak: float, kept: float, seed: int = 0) -> dict[str, Any]:
    figures = {name: figure(leak if name in LEAKS else kept) for name in GROUPS}
    figures |= {"intact": figure(0.97), "unasked": figure(0.01, 192)}
    made: dict[str, Any] = {"method": method, "concept": concept, "seed": seed, "figures": figures}
    if method == bench.UNTOUCHED:
        return made | {"peak_memory": 600_000_000}
    figures |= {"drift": figure(0.02, 64), "distance": figure(0.05)}
    return made | {"seconds": 30.0, "peak_memory": 900_000_000, "file_bytes": 123_000}


RESULTS = [
    result("closed_form", "ball", 0.5, 0.8),
    result("esd", "ball", 0.0625, 0.75),
    result("esd", "house", 0.125, 0.8),
    result("untouched", "ball", 0.95, 1.0),
    result("untouched", "house", 0.96, 0.8),
]


def rows(markdown: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]


def test_the_untouched_model_and_the_floor_come_first() -> None:
    head, _, first, second, *rest = rows(summary(RESULTS))
    assert [row[0] for row in (first, second, *rest)] == ["untouched", "judge's floor", "closed_form", "esd"]
    named = head.index("named")
    assert second[named].startswith("1.0 % [") and second[named].endswith(" 384")
    for row in (first, *rest):
        assert all("[" in cell or cell in ("-", "2", "1") for cell in row[1:] if cell[-2:] != " 1"), row


def test_retention_is_a_share_of_the_untouched_models() -> None:
    head, _, *body = rows(summary(RESULTS))
    esd = next(row for row in body if row[0] == "esd")
    assert esd[head.index("named")].startswith("9.4 % [")
    assert esd[head.index("kept")].startswith("87.5 % ["), "the mean of 75 % and 100 %"
    assert esd[head.index("named")].endswith(" 192")


def test_goals_say_what_is_reached_and_what_is_missed_by_how_much() -> None:
    verdicts = {(method, name): rest for method, name, *rest in goal_rows(RESULTS)}
    # Means: leak above a floor of 1 %, retention as a share of 100 % and of 80 %.
    assert verdicts["esd", "named"] == ["≤ 5 %", "8.4 %", "8.4 %", "missed by 3.4"]
    assert verdicts["esd", "intact"] == ["≥ 90 %", "97.0 %", "97.0 %", "reached"]
    assert verdicts["esd", "kept"] == ["≥ 93 %", "87.5 %", "87.5 %", "missed by 5.5"]
    assert not any(method == "auto" for method, _ in verdicts), "it has no result"
    assert "missed by 3.4" in tables(RESULTS)


def test_goals_are_also_told_without_the_concept_that_no_method_erases() -> None:
    made = [*RESULTS, result("esd", "striped", 0.51, 0.5), result("untouched", "striped", 0.75, 1.0)]
    named = next(row for row in goal_rows(made) if row[:2] == ["esd", "named"])
    assert named[3:5] == ["22.2 %", "8.4 %"], "means over three and over two concepts"


def test_methods_are_held_against_esd_and_co_erasing_against_words_alone() -> None:
    made = [*RESULTS, result("auto", "ball", 0.05, 0.7), result("rece", "ball", 0.3, 0.7)]
    verdicts = {row[0]: row[1:] for row in relative_rows(made)}
    # On `ball` alone, which all were measured on: ESD leaks 5.25 % above a floor of 1 % and keeps 75 %.
    assert verdicts["closed_form"][1:] == ["1", "49.0 %", "5.2 %", "80.0 %", "75.0 %", "reached"]
    assert verdicts["auto"][-1] == "reached" and verdicts["rece"][-1] == "missed" and "esd" not in verdicts
    for leak, verdict in ((0.2, "reached"), (0.3, "missed")):
        halved = [result("co_erasing", "ball", leak, 1.0), result("co_erasing without pictures", "ball", 0.41, 1.0)]
        rows = [row for row in relative_rows([*RESULTS, *halved]) if "half" in row[1]]
        assert [row[-1] for row in rows] == [verdict] * 2, "unnamed words and descriptions; nothing was searched"
        for one in halved:
            one["figures"][SEARCHED] = figure(leak if one["method"] == "co_erasing" else 0.41)
        rows = [row for row in relative_rows([*RESULTS, *halved]) if "half" in row[1]]
        assert [row[-1] for row in rows] == [verdict] * 3
    assert not any("half" in row[1] for row in relative_rows(RESULTS)), "neither has a result"


def test_every_method_and_concept_has_its_row() -> None:
    text = tables(RESULTS)
    for method, concept in (("esd", "ball"), ("esd", "house"), ("closed_form", "ball"), ("untouched", "house")):
        assert text.count(f"| {method} | {concept} |") == 3
    assert text.count("| judge's floor | ball |") == 1
    assert "30.0 s 1 |" in text and "900 MB 1 |" in text and "123 kB 1 |" in text


def test_the_bench_prints_for_each_cell_what_the_tables_say_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [RESULTS[3], RESULTS[1]]
    monkeypatch.setattr(bench, "run_bench", lambda *_: iter(made))
    monkeypatch.setattr(bench, "read_results", lambda: RESULTS)
    monkeypatch.setattr(sys, "argv", ["proving_ground", "bench", "--method", "esd", "--concept", "ball"])
    assert main() == 0
    head, _, untouched, esd, *_ = rows(capsys.readouterr().out)
    assert head[:2] == ["method", "concept"] and untouched[:2] == ["untouched", "ball"] and esd[:2] == ["esd", "ball"]
    told = [cell for row in rows(tables(RESULTS)) if row[:2] == ["esd", "ball"] for cell in row[2:]]
    assert esd[2:] == told and told[-3:] == ["30.0 s 1", "900 MB 1", "123 kB 1"]


def test_tables_are_written_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "quality.md"
    document.write_text(f"# Quality\n\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_tables(document, RESULTS)
    first = document.read_text(encoding="utf-8")
    assert first.startswith(f"# Quality\n\n{BEGIN}\n") and first.endswith(f"{END}\nafter\n") and "old" not in first
    write_tables(document, RESULTS)
    assert document.read_text(encoding="utf-8") == first
    document.write_text("no marks", encoding="utf-8")
    with pytest.raises(InvalidFile, match="lacks the marks"):
        write_tables(document, RESULTS)
    with pytest.raises(InvalidFile, match="no results"):
        tables([])
    assert document.read_text(encoding="utf-8") == "no marks"


def test_results_of_another_model_or_other_settings_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "model_mark", lambda: "now")
    cells = [Cell("esd", concept, 0) for concept in ("ball", "house", "star")]

    def write(cell: Cell, **result: Any) -> None:
        cell.path.parent.mkdir(exist_ok=True)
        cell.path.write_text(json.dumps(result))

    now = asdict(cells[0].settings)
    write(cells[0], model="now", round=bench.ROUND, settings=now)
    assert bench.missing(cells) == cells[1:]
    write(cells[0], model="now", round=bench.ROUND, settings=now, figures={})
    assert bench.missing(cells[:1], searched=True) == cells[:1] and not bench.missing(cells[:1])
    write(cells[0], model="now", round=bench.ROUND, settings=now, figures={SEARCHED: figure(0.1)})
    assert not bench.missing(cells[:1], searched=True)
    for other in (
        {"model": "before", "round": bench.ROUND, "settings": now},
        {"model": "now", "round": bench.ROUND - 1, "settings": now},
        {"model": "now", "round": bench.ROUND, "settings": now | {"steps": 7}},
    ):
        write(cells[0], **other)
        assert bench.missing(cells) == cells, f"not of the model, the methods or the settings as they are: {other}"


def test_the_document_holds_the_tables_of_the_results() -> None:
    text = (DOCS / "quality.md").read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == tables(bench.read_results())


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        low, high = mean_of(rng.normal(3.0, 1.0, 60).tolist()).interval
        held.append(low <= 3.0 <= high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_a_ratio_of_norms_is_that_of_all_cases_together() -> None:
    measure = norm_ratio_of([1.0, 4.0], [100.0, 100.0])
    assert measure.value == pytest.approx((5 / 200) ** 0.5) and measure.count == 2
    assert measure.interval == pytest.approx((0.1, 0.2))


def test_the_peak_of_memory_includes_what_has_been_given_back() -> None:
    before = bench.peak_memory()
    block = np.ones(before, np.uint8)
    with_block = bench.peak_memory()
    assert with_block > before + len(block) // 2
    del block
    assert bench.peak_memory() > with_block - 10_000_000, "the kernel counts in batches"


def test_the_document_holds_the_pool_s_figures() -> None:
    text = (DOCS / "quality.md").read_text(encoding="utf-8")
    told = text.partition(pool_bench.BEGIN)[2].partition(pool_bench.END)[0].strip()
    assert told == pool_bench.figures(), "run: python -m proving_ground pool --docs"
