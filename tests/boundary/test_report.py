"""The report card, its page, the loop, and both commands."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT
from safetensors.torch import load_file

from erasure_core import Concept, DeltaSet, Report, Silent, erase, read_erasure, write_erasure
from erasure_core.boundary import ExploreSettings, scores, wording
from erasure_core.boundary import report as reporting
from erasure_core.boundary.harden import harden, widened
from erasure_core.boundary.report import ReportSettings, Subjected, report
from erasure_core.boundary.report_card import FileReport, ReportCard, measured_entry, share_of
from erasure_core.boundary.report_page import merge_into_manifest, report_page, write_report
from erasure_core.boundary.report_picture import report_picture
from erasure_core.boundary.verdict import verdict
from erasure_core.cli.explore import searched_concept
from erasure_core.cli.main import main
from erasure_core.errors import InvalidConcept, InvalidFile, InvalidSettings, ModelError
from erasure_core.everyday import everyday_words
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.methods.closed_form import ClosedFormSettings
from erasure_core.methods.esd import EsdSettings

QUICK = ReportSettings(calls=300, states=2, steps=2)


class Listening(Silent):
    """What a user is told meanwhile."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def update(self, report: Report) -> None:
        self.stages.append(report.stage)


@pytest.fixture(scope="module")
def progress() -> Listening:
    return Listening()


@pytest.fixture(scope="module")
def card(pico_models: dict[str, DiffusersModel], change: DeltaSet, progress: Listening) -> ReportCard:
    files = [Subjected("whole", change), Subjected("<i>half</i>", change, 0.5)]
    return report(pico_models["sd1"], CONCEPT, files, QUICK, progress)


def test_no_part_of_the_work_is_silent(card: ReportCard, progress: Listening) -> None:
    told = list(dict.fromkeys(progress.stages))
    assert told[:2] == ["preparing", "searching whole"] and "painting" in told
    assert [stage for stage in told if stage.startswith("measuring whole at")][::3] == [
        f"measuring whole at strength {strength}" for strength in ("0", "0.75", "1.5")
    ]
    assert "measuring what <i>half</i> keeps" in told


def test_columns_have_names_of_their_own(change: DeltaSet) -> None:
    given = [("ball", 1.0, "a"), ("ball", 0.5, "a"), ("ball", 1.0, "b"), ("cat", 1.0, "b"), ("cat", 1.0, "b")]
    named = reporting.distinct([Subjected(name, change, strength, folder=where) for name, strength, where in given])
    assert [file.name for file in named] == ["a/ball:1", "a/ball:0.5", "b/ball", "b/cat:1 (1)", "b/cat:1 (2)"]
    alone = reporting.distinct([Subjected("ball", change, 0.5, folder="a")])
    assert alone[0].name == "ball", "what is clear by itself stays short"


def test_a_report_names_one_file_at_two_strengths(pico: DiffusersModel, change: DeltaSet) -> None:
    few = ReportSettings(calls=1, states=2, pictures=False)
    both = report(pico, CONCEPT, [Subjected("ball", change), Subjected("ball", change, 0.5)], few)
    page = report_page(both)
    assert page.count("<th>ball:1</th>") == page.count("<th>ball:0.5</th>") == 2 and "<th>ball</th>" not in page


def test_files_of_several_concepts_are_not_measured_on_the_first_ones(
    pico_folders: dict[str, Path], pico: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {word: tmp_path / f"{word}.safetensors" for word in ("ball", "cat")}
    for word, path in paths.items():
        made = erase(pico, Concept((word,), "box", ("a dog",)), "closed_form", ClosedFormSettings(neighbours=0))[0]
        write_erasure(path, made, pico)
    asked = ["report", "--model", str(pico_folders["sd1"]), "--no-pictures", "--calls", "30", "--states", "2"]
    asked += ["--out", str(tmp_path / "card"), "--erasure", str(paths["ball"]), "--erasure", str(paths["cat"])]
    assert main(asked) == 3
    assert "cat.safetensors erases 'cat', the first file 'ball'; report on each by itself" in capsys.readouterr().err
    assert main([*asked, "--concept", "ball"]) == 0
    told = "This file erases “cat”; measured is what it does to “ball”, which it does not erase."
    page = (tmp_path / "card" / "report.html").read_text(encoding="utf-8")
    assert page.count(told) == 1 and told in capsys.readouterr().out
    how = "seed 0; each search 30 predictions at 2 noisy latents; pictures by DDIM in 20 steps at guidance 5"
    assert how in page, "what to set for the same report once more"


def test_measures_every_file(card: ReportCard) -> None:
    assert [file.name for file in card.files] == ["whole", "<i>half</i>"]
    for file in card.files:
        assert {"named", "vocabulary"} <= file.leak.keys() and "named" in file.yardstick
        assert file.retention.keys() == {"kept prompts", "look-alikes", "attributes"}
        assert [strength for strength, _, _ in file.sweep] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
        assert all(0 <= share.low <= share.share <= share.high <= 1 for share in file.leak.values())
        assert file.verdict and all(value >= 0 for _, value in file.drift)
    assert card.files[0].sweep[0][2] == 1.0  # at strength 0 everything is kept
    whole, half = (file.change["kept prompts"] for file in card.files)
    assert whole > half > 0


def test_page_holds_everything_and_escapes(card: ReportCard) -> None:
    page = report_page(card)
    assert "<i>half</i>" not in page and "&lt;i&gt;half&lt;/i&gt;" in page and "<script" not in page
    assert "does not withstand an attacker who has the weights" in page.casefold()
    assert "the loaded model was their judge" in page and "detector" not in page
    pictures = re.findall(r'src="(data:image/png;base64,[^"]+)"', page)
    assert len(pictures) == 3 * len(card.strips) and len(card.strips) > 4
    assert page.count("<svg") == 4


def test_writes_and_merges(card: ReportCard, pico: DiffusersModel, tmp_path: Path) -> None:
    assert {path.name for path in write_report(card, tmp_path)} == {
        "report.html", "report.json", "map_1.html", "map_2.html",
    }  # fmt: skip
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [f'href="map_{number}.html"' in page for number in (1, 2)] == [True] * 2 and "href" not in report_page(card)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["files"][0]["leak"]["named"]["count"] == 2 * (5 + 3) and content["limits"]
    path = tmp_path / "ball.safetensors"
    write_erasure(path, erase(pico, CONCEPT, "closed_form")[0], pico)
    before = load_file(path)
    merge_into_manifest(path, card)
    after, manifest = load_file(path), read_erasure(path).manifest
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert manifest is not None and manifest.measured["report_card"]["threat_model"] == list(card.limits)
    how = {"calls": 300, "states": 2, "guidance": 5.0, "sampler": "DDIM", "steps": 2, "seed": 0}
    assert how.items() <= manifest.measured["report_card"].items() and "seconds" not in manifest.measured["report_card"]


def test_a_model_without_autoencoder_is_measured_without_pictures(pico: DiffusersModel, change: DeltaSet) -> None:
    blind = DiffusersModel(pico.unet, pico.text_encoders, pico.tokenizers, pico.schedule)
    card = report(blind, Concept(("ball",)), [Subjected("x", change)], replace(QUICK, pictures=True))
    assert card.files and not card.strips


def test_needs_a_manifest_to_merge_into(card: ReportCard, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "plain.safetensors"
    save_file({"lora_unet_x.diff": torch.zeros(1, 1)}, path)
    with pytest.raises(InvalidFile, match="no manifest"):
        merge_into_manifest(path, card)


def test_explicit_concepts_are_not_painted(pico: DiffusersModel, change: DeltaSet) -> None:
    nude = Concept(("nudity",), keep=("a photo of a child", "a cat"))
    files = [Subjected("x", change)]
    hidden = report(pico, nude, files, QUICK)
    assert hidden.explicit and not any(strip.kind == "erased" for strip in hidden.strips)
    assert not any("child" in strip.prompt for strip in hidden.strips)
    shown = report(pico, nude, files, replace(QUICK, explicit=True))
    assert any(strip.kind == "erased" for strip in shown.strips)
    with pytest.raises(InvalidConcept, match="does not start"):
        report(pico, Concept(("nude", "child")), files, QUICK)


def test_what_is_explicit_itself_is_hidden_whatever_the_concept(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    blurred: dict[str, bool] = {}
    painted: list[str] = []
    sample = reporting.sample
    monkeypatch.setattr(
        reporting,
        "sample",
        lambda model, prompts, *rest, **more: (painted.extend(prompts), sample(model, prompts, *rest, **more))[1],
    )
    monkeypatch.setattr(reporting, "picture_uri", lambda picture, blur, side: str(blur))
    few = replace(QUICK, calls=1)
    for dress in (Concept(("hat",), keep=("naked people",)), Concept(("dress",), "nudity", ("naked people",))):
        painted.clear()
        card = report(pico, dress, [Subjected("x", change)], few)
        assert not any("naked" in prompt for prompt in painted) and card.explicit == (dress.alternative is not None)
        assert any("dress" in prompt for prompt in painted) is False
        assert card.not_painted.startswith("Not painted: “") and card.not_painted in report_page(card)
        assert ("“nudity” is taken" in card.not_painted) == card.explicit, "it names what the others are left out for"
        assert "“naked people” is taken" in card.not_painted or card.explicit
        shown = report(pico, dress, [Subjected("x", change)], replace(few, explicit=True))
        assert not shown.not_painted
        blurred = {strip.prompt: strip.pictures[0] == "True" for strip in shown.strips}
        assert blurred["naked people"] and blurred[f"a photo of a {dress.name}"] == card.explicit


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("acted"), ModelError("The VAE gives no finite numbers.")])
def test_what_was_measured_is_kept_where_the_pictures_cannot_be_painted(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(reporting, "sample", failing)
    card = report(pico, CONCEPT, [Subjected("x", change)], replace(QUICK, calls=1))
    assert card.files and not card.strips and card.not_painted.startswith("Not painted: The ")
    assert card.not_painted in report_page(card)


def test_compares_files_by_one_preparation(
    pico: DiffusersModel, change: DeltaSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the original model says is the same for all; and a detector that was given is told as the judge. What was
    erased is none of the prompts to keep, though it is an everyday word."""
    prepared: list[int] = []
    asked: list[str] = []
    make_probe, kept_prompts = scores.make_probe, reporting.kept_prompts

    def counted(*given: Any) -> Any:
        prepared.append(1)
        return make_probe(*given)

    def noted(scorer: Any, texts: list[str]) -> Any:
        asked.extend(texts)
        return kept_prompts(scorer, texts)

    monkeypatch.setattr(wording, "everyday_words", everyday_words)  # all of them
    monkeypatch.setattr(scores, "make_probe", counted)
    monkeypatch.setattr(reporting, "kept_prompts", noted)
    files = [Subjected("whole", change), Subjected("half", change, 0.5)]
    few = ReportSettings(calls=1, states=2, pictures=False)
    both = report(pico, Concept(("dog",)), files, few, detector=lambda pictures: [0.1] * len(pictures))
    assert len(prepared) == 1 and len(both.files) == 2
    assert "a dog" not in asked and "a train" in asked
    assert "the detector that was given was their judge" in report_page(both)


def test_intervals() -> None:
    share = share_of([True] * 30 + [False] * 70)
    assert share.share == 0.3 and 0.2 < share.low < 0.25 and 0.36 < share.high < 0.42
    none, every = share_of([False] * 10), share_of([True] * 10)
    assert (none.low, every.high) == (0.0, 1.0), "none of ten is no proof that there are none"
    assert none.high == pytest.approx(0.2775, abs=1e-4) and every.low == pytest.approx(1 - 0.2775, abs=1e-4)
    assert (share_of([]).count, share_of([]).high) == (0, 1.0)


def test_what_is_told_by_directions_alone_is_labelled(card: ReportCard) -> None:
    page = report_page(card)
    assert "untouched, by direction" in page and "Leak (by direction)" in page and "without pictures" in page


def _leaking(card: ReportCard, looked: int) -> FileReport:
    """Five leaks of words and an attack."""
    leak = {"named": share_of([False] * 10), "vocabulary": share_of([True] + [False] * 9), "genetic": share_of([True])}
    return replace(card.files[0], leak=leak, found=("q w e r", "orb"), unnamed=("orb",), looked=looked)


def test_words_and_spellings_are_those_of_their_searches(card: ReportCard) -> None:
    """The rows of tokens that a genetic search bred are no spelling of anything."""
    said = " ".join(verdict(_leaking(card, 1), CONCEPT))
    assert "1 of 10 other words and spellings still reach it: “orb”." in said and "q w e r" not in said


def test_only_what_was_learned_is_called_a_learned_embedding(card: ReportCard) -> None:
    def said(origin: str) -> str:
        leak = {"named": share_of([False] * 10), origin: share_of([True])}
        return " ".join(verdict(replace(card.files[0], leak=leak), CONCEPT))

    assert "A learned embedding still reaches it" in said("inversion") and "closed form" not in said("inversion")
    assert "learned" not in said("closed form") and "worked out in closed form" in said("closed form")


def test_prompts_that_nobody_looked_at_are_not_said_to_be_clean(card: ReportCard) -> None:
    open_ones = replace(card.files[0], leak={"named": share_of([False] * 22)}, unsettled=3)
    said = verdict(open_ones, CONCEPT)[0]
    assert "no longer reach" not in said and "0 are seen" in said and "3 of them still steer pictures its way" in said
    one = replace(card.files[0], leak={"named": share_of([True] + [False] * 21)}, unsettled=0)
    assert "hardly reach it any more (1 of 22)" in verdict(one, CONCEPT)[0]


def test_a_threshold_that_nothing_can_pass_judges_nothing(card: ReportCard) -> None:
    """It is fitted to harmless prompts; where those read as the concept, "none leaks" would be a false comfort."""
    exploration = replace(card.explorations[0], threshold=1.0)
    assert not exploration.judged and replace(exploration, threshold=0.9).judged
    assert "could not be judged" in exploration.summary() and "still reach" not in exploration.summary()
    blind = replace(card.files[0], judged=False, leak={"named": share_of([False] * 10)})
    said = verdict(blind, CONCEPT)
    assert "could not be judged" in said[0] and not any("no longer reach" in one for one in said)
    blind = replace(blind, verdict=said, sweep=tuple((s, leak, None) for s, leak, _ in blind.sweep))
    shown = replace(card, files=(blind,), explorations=(exploration,))
    assert "not judged" in report_page(shown) and "0% <small>" not in report_page(shown).split("Retention")[0]
    assert report_picture(shown).width and measured_entry(shown)["report_card"]["leak_judged"] is False


def test_that_nobody_looked_is_told(card: ReportCard) -> None:
    assert any("No picture was looked at" in one for one in verdict(_leaking(card, 0), CONCEPT))
    assert not any("No picture was looked at" in one for one in verdict(_leaking(card, 1), CONCEPT))


def test_a_file_gets_the_figures_of_its_own_concept_and_strength(
    card: ReportCard, pico: DiffusersModel, tmp_path: Path
) -> None:
    path = tmp_path / "ball.safetensors"
    write_erasure(path, erase(pico, CONCEPT, "closed_form")[0], pico)
    merge_into_manifest(path, replace(card, words=("Ball",)))
    stored = read_erasure(path).manifest
    assert stored is not None
    entry = stored.measured["report_card"]
    assert (entry["concept"], entry["strength"]) == (["Ball"], 1.0) and "looked at as pictures" in entry["searched"]
    with pytest.raises(InvalidSettings, match=r"at strength 0\.5 cannot be written"):
        merge_into_manifest(path, card, 1)
    with pytest.raises(InvalidSettings, match="does not erase 'cube'"):
        merge_into_manifest(path, replace(card, words=("ball", "cube")))


def test_figures_that_cannot_be_written_are_not_measured(
    pico_folders: dict[str, Path], pico: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ball.safetensors"
    write_erasure(path, erase(pico, CONCEPT, "closed_form")[0], pico)
    asked = ["report", "--model", str(pico_folders["sd1"]), "--merge", "--out", str(tmp_path / "card")]
    assert main([*asked, "--erasure", f"{path}:0.5"]) == 3 and "at strength 0.5" in capsys.readouterr().err
    assert main([*asked, "--erasure", str(path), "--concept", "cube"]) == 3
    assert "does not erase 'cube'" in capsys.readouterr().err


def test_hardening_goes_on_from_the_same_change(pico: DiffusersModel) -> None:
    search = ExploreSettings(seconds=None, calls=2500, states=2, look=0, levels="lexical+vocabulary")
    settings = EsdSettings(replace=False, steps=3, trajectories=10, trajectory_steps=2)
    seen = []
    erasure, history, rounds = harden(
        pico, CONCEPT, 2, "esd", settings, search, notify=lambda number, found: seen.append(number)
    )
    assert len(history.losses) == 3 and seen == list(range(1, len(rounds) + 1))
    manifest = erasure.manifest
    assert manifest.settings["harden"] == [{"leaking": r.leaking, "tried": r.tried, "added": r.added} for r in rounds]
    added = tuple(word for one in rounds for word in one.added)
    assert manifest.words == (*CONCEPT.words, *added)


def test_without_rounds_it_is_an_erasure(pico: DiffusersModel) -> None:
    plain = erase(pico, CONCEPT, "closed_form", ClosedFormSettings())[0]
    same, _, rounds = harden(pico, CONCEPT, 0, "closed_form", ClosedFormSettings())
    assert same.manifest == plain.manifest and rounds == ()
    harden(pico, Concept(("naked child",)), 0, "closed_form")  # erasing is never refused
    with pytest.raises(InvalidConcept, match="does not start"):
        harden(pico, Concept(("naked child",)), 1, "closed_form")


def test_widening_never_touches_what_is_kept() -> None:
    concept = Concept(("ball",), "box", ("a red orb", "a cat"))
    found = [(word, "ball") for word in ("orb", "BOX", "globe", "Ball", "cat")]
    assert widened(concept, found).words == ("ball", "globe")
    named = Concept(("Eiffel Tower",), None, ("a red orb",))
    found = [(word, "Eiffel Tower") for word in ("eiffel tower", "tower")]
    assert widened(named, found).words == ("Eiffel Tower", "tower")


def test_a_word_that_the_erasure_kept_can_be_searched_for() -> None:
    kept = Concept(("ball",), "box", ("a cube", "a hoop", "a cat"))
    stored: Any = SimpleNamespace(manifest=SimpleNamespace(concept=kept))
    asked: dict[str, Any] = {"concept": None, "word": [], "keep": []}
    whole = searched_concept(SimpleNamespace(**asked | {"word": [" Hoop"]}), [stored])  # type: ignore[arg-type]
    assert whole.words == ("ball", "Hoop") and whole.keep == ("a cube", "a cat") and whole.alternative == "box"
    other = searched_concept(SimpleNamespace(**asked | {"concept": "cube", "keep": ["a tree"]}), [stored])  # type: ignore[arg-type]
    assert other.words == ("cube",) and other.keep == ("a tree", "a hoop", "a cat")
    with pytest.raises(InvalidConcept, match="both erased and kept"):
        searched_concept(SimpleNamespace(**asked | {"concept": "cube", "keep": ["a cube"]}), [stored])  # type: ignore[arg-type]


def test_commands(pico_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = str(pico_folders["sd1"]), str(tmp_path / "ball.safetensors")
    erasing = ["erase", "--model", model, "--concept", "ball", "--method", "closed_form", "--out", file]
    assert main([*erasing, "--harden", "1", "--harden-budget", "2s"]) == 0
    assert "Round 1:" in capsys.readouterr().err
    out = tmp_path / "found"
    asked = ["explore", "--model", model, "--erasure", file, "--calls", "1500", "--states", "2", "--out", str(out)]
    assert main([*asked, "--levels", "lexical", "--look", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "ball" in told["summary"] and all(Path(path).exists() for path in told["files"])
    card = tmp_path / "card"
    measured = ["report", "--model", model, "--erasure", file, "--calls", "300", "--states", "2", "--merge"]
    assert main([*measured, "--steps", "3", "--no-pictures", "--out", str(card)]) == 0
    assert (card / "report.html").exists()
    entry = read_erasure(Path(file)).manifest.measured["report_card"]  # type: ignore[union-attr]
    assert (entry["calls"], entry["steps"]) == (300, 3)
    assert main(["explore", "--model", model, "--concept", "naked child", "--out", str(out)]) == 3
    assert "does not start" in capsys.readouterr().err
    assert main(["explore", "--model", model, "--out", str(out)]) == 3
    assert "give --concept" in capsys.readouterr().err
