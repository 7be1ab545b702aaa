"""The tab as gradio gets it, and what its buttons and routes make of what they are sent."""

from __future__ import annotations

import html
import importlib
import inspect
import json
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "boundary"))

import fake_gradio
import fakes
from fake_host import web_framework
from made_up import HOSTILE, made_up

from erasure_core.boundary import ExploreSettings
from erasure_core.effort import Effort
from erasure_core.errors import ErasureError, InvalidSettings
from erasure_core.methods import find_method
from erasure_core.presets import preset_settings


@pytest.fixture
def part(a1111: SimpleNamespace, library: Path) -> Any:
    return lambda name: importlib.import_module(f"concept_erasure_webui.{name}")


@pytest.fixture
def page(a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch) -> fake_gradio.Page:
    made = fake_gradio.Page()
    monkeypatch.setitem(sys.modules, "gradio", made)
    for name in [name for name in sys.modules if name.startswith("concept_erasure_webui.")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("concept_erasure_webui.tab").tabs()
    return made


def test_every_event_fits_its_handler(page: fake_gradio.Page) -> None:
    assert len(page.events) > 20
    for component, work, inputs, _, script in page.events:
        if work is None:
            assert script, component.given
            continue
        try:
            inspect.signature(work).bind(*inputs)
        except TypeError as error:
            pytest.fail(f"{component.given}: {error}")
        if script is not None and script.startswith("concept_erasure_submit"):
            assert inputs[0].given["label"].endswith(" task"), script
    script = (Path(__file__).parents[2] / "javascript" / "concept_erasure.js").read_text(encoding="utf-8")
    used = {script for *_, script in page.events if script}
    assert all(f"function {name}(" in script for name in used) and len(used) == 6


def test_the_page_is_built_before_the_model_is_loaded(a1111: SimpleNamespace, page: fake_gradio.Page) -> None:
    tab = sys.modules["concept_erasure_webui.tab"]
    assert "Loaded: one.safetensors" in tab.model_line_at_start()

    class Unloaded(type(a1111.shared)):  # type: ignore[misc]
        """As A1111's, which loads the model when it is asked for."""

        @property
        def sd_model(self) -> Any:
            raise AssertionError("the page must not wait for the model")

    del a1111.shared.sd_model
    a1111.shared.__class__ = Unloaded
    sys.modules["modules.sd_models"].model_data.sd_model = None
    tab.tabs()
    last = [c for c in page.components if c.given.get("elem_id") == "concept_erasure_model"][-1]
    assert "press Refresh" in last.positional[0]


def test_the_box_that_confirms_a_deletion_is_ticked_for_one_file(page: fake_gradio.Page) -> None:
    sure = page.of("sure")
    after = [(work, outputs) for _, work, _, outputs, _ in page.events if sure in outputs]
    assert len(after) == 5  # after every button that does something to a file
    assert all(work("", "None", [])[outputs.index(sure)] is False for work, outputs in after)


def test_what_was_deleted_or_renamed_is_chosen_no_longer(page: fake_gradio.Page, library: Path) -> None:
    lists = [work for _, work, inputs, outputs, _ in page.events if page.of("library") in outputs and len(inputs) == 3]
    for renamed, chosen in (("ball", ("ball", ["ball", "words"])), ("box", ("None", ["words"]))):
        (library / "ball.safetensors").replace(library / f"{renamed}.safetensors")
        for _, name, files, *_ in [work("", "ball", ["ball", "words"]) for work in lists]:
            assert renamed in name["choices"] and (name["value"], files["value"]) == chosen
    assert len(lists) == 8


def test_labels_and_ids_are_unique_and_known_to_the_script(page: fake_gradio.Page) -> None:
    labels = [c.given["label"] for c in page.components if "label" in c.given]
    ids = [c.given["elem_id"] for c in page.components if "elem_id" in c.given]
    assert len(set(labels)) == len(labels) and len(set(ids)) == len(ids)
    script = (Path(__file__).parents[2] / "javascript" / "concept_erasure.js").read_text(encoding="utf-8")
    for name in ("explore_progress", "report_progress", "purify_progress", "explore_live", "map", "selected", "tabs"):
        assert f"concept_erasure_{name}" in script and page.of(name)


def test_the_panels_know_a_new_file_at_once(page: fake_gradio.Page) -> None:
    panel = sys.modules["concept_erasure_webui.panel"].ConceptErasureScript()  # type: ignore[attr-defined]
    panel.ui(False), panel.ui(True)
    told = [component for component, *_, script in page.events if script == "concept_erasure_refresh_panels"]
    assert len(told) == 7  # after an erasing, what was saved of one, and all that the Library does
    script = (Path(__file__).parents[2] / "javascript" / "concept_erasure.js").read_text(encoding="utf-8")
    assert "'concept_erasure_refresh_' + tab" in script and page.of("refresh_txt2img") and page.of("refresh_img2img")


def test_lists_are_read_again_when_a_sub_tab_is_opened(page: fake_gradio.Page, library: Path) -> None:
    (library / "late.safetensors").write_bytes((library / "ball.safetensors").read_bytes())
    opened = [(work, outputs) for c, work, _, outputs, _ in page.events if c.kind == "TabItem"]
    lists = {outputs[0].given["elem_id"]: work() for work, outputs in opened if len(outputs) == 1}
    (whole,) = [work("", "None", None) for work, outputs in opened if len(outputs) == 3]
    assert "late.safetensors" in whole[0] and "late" in whole[1]["choices"]
    assert {name.removeprefix("concept_erasure_") for name in lists} == {
        "explore_with", "report_erasures", "report_saved", "purify_with",
    }  # fmt: skip
    assert "late" in lists["concept_erasure_explore_with"]["choices"]
    assert "None" not in lists["concept_erasure_report_erasures"]["choices"]


def test_a_page_that_is_opened_later_shows_what_is_now(
    page: fake_gradio.Page, a1111: SimpleNamespace, library: Path
) -> None:
    part = sys.modules
    part["concept_erasure_webui.panel"].ConceptErasureScript().ui(False)  # type: ignore[attr-defined]
    jobs = part["concept_erasure_webui.jobs"]
    jobs.JOBS.last = jobs.Job("Erasing 'ball'")  # type: ignore[attr-defined]
    (library / "late.safetensors").write_bytes((library / "ball.safetensors").read_bytes())
    a1111.shared.opts.concept_erasure_profile = "studio"
    shown: dict[str, Any] = {}
    for component, work, inputs, outputs, _ in page.events:
        if component.kind == "Blocks":
            made = work(*[""] * len(inputs))
            shown |= zip([one.given["elem_id"] for one in outputs], made if len(outputs) > 1 else [made], strict=True)
    said = {name.removeprefix("concept_erasure_"): value for name, value in shown.items()}
    assert "Safety profile: studio" in said["model"] and "running" in said["last_job"]
    assert "late" in said["library"] and "late" in said["chosen"]["choices"]
    assert all("late" in said[f"name_txt2img_{place}"]["choices"] for place in range(1, 5))
    assert "value" not in said["name_txt2img_1"]


def test_the_checkpoint_that_is_loaded_when_it_is_needed(page: fake_gradio.Page, forge: SimpleNamespace) -> None:
    tab, data = sys.modules["concept_erasure_webui.tab"], sys.modules["modules.sd_models"].model_data
    two = fakes.Checkpoint("two.safetensors")
    data.forge_loading_parameters = {"checkpoint_info": two}
    for model in (SimpleNamespace(cond_stage_model=None), forge.model):  # Forge's first one, and another one
        data.sd_model = forge.shared.sd_model = model
        for line in (tab.model_line(), tab.model_line_at_start()):
            assert "Chosen: two.safetensors. It is loaded when it is needed." in line and "error" not in line
    forge.model.sd_checkpoint_info = two
    assert "Loaded: two.safetensors" in tab.model_line()
    forge.model.sd_checkpoint_info = fakes.Checkpoint("refiner.safetensors")  # as A1111 leaves it
    data.forge_loading_parameters = {}
    forge.shared.opts.sd_model_checkpoint = "two"
    sys.modules["modules.sd_models"].checkpoint_aliases["two"] = two
    assert "Chosen: two.safetensors" in tab.model_line()


def test_the_live_preview_has_a_place_of_its_own(page: fake_gradio.Page) -> None:
    """The host lays it over all of its place, and what stands there could not be read."""
    script = (Path(__file__).parents[2] / "javascript" / "concept_erasure.js").read_text(encoding="utf-8")
    assert page.of("live").kind == "Column" and script.count("'concept_erasure_live'") == 1
    assert script.count("requestProgress(id, element(container), element(preview)") == 1


FORM = ["", "", "", "ball", 1.0, 60.0, ["lexical"], 4, False, 2, 64, 0]


def test_the_explore_form(part: Any) -> None:
    tab = part("explore_tab")
    asked = tab.search_of("ball\n\n sphere ", "a box", "", "ball", 0.5, 30, ["lexical", "prefix"], 8, True, 4, 128, 7)
    assert asked.words == ("ball", "sphere") and asked.erasure.unet == 0.5 and asked.latent_side == 16
    assert (asked.settings.levels, asked.settings.seconds, asked.settings.seed) == ("lexical+prefix", 30.0, 7)
    assert tab.search_of(*FORM[:3], "None", *FORM[4:]).erasure is None
    wrong = ((4, 9.0), (4, None), (5, 0.0), (5, None), (6, []), (7, None), (9, 1), (10, 3), (10, 10**9), (11, "x"))
    for place, value in wrong:
        with pytest.raises(ErasureError):
            tab.search_of(*FORM[:place], value, *FORM[place + 1 :])
    with pytest.raises(InvalidSettings, match="guidance"):
        tab.search_of(*FORM, False, "")
    assert "no number" not in tab.explore("task", *FORM[:5], 0.0, *FORM[6:])[2]
    assert "class='error'" in tab.explore("task", *FORM[:5], 0.0, *FORM[6:])[2]


def test_the_button_explore_shows_table_map_and_summary(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tab, exploring = part("explore_tab"), part("exploring")
    monkeypatch.setattr(exploring, "explore", lambda *a, notify, **k: made_up(30))
    table, plot, said = tab.explore("task", *FORM)
    assert "concept_erasure_candidates_table" in table and "<iframe" in plot and "still reach" in said
    assert tab.shown() == [table, plot, tab.shown()[2]]


def test_searches_that_were_not_made_are_told(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow host the seconds sufficed for the concept's own words, and "0 of 46 prompts reach it" stood alone."""
    exploring = part("exploring")
    monkeypatch.setattr(exploring, "explore", lambda *a, notify, **k: made_up(30))  # lexical and vocabulary
    for levels, told in (("lexical+vocabulary", ""), ("lexical+genetic+vocabulary+prefix", "genetic, prefix.")):
        search = exploring.Search(("ball",), (), (), None, ExploreSettings(levels=levels), 8)
        job = exploring.run_explore(search)
        assert ("Not searched" in job.message) is bool(told) and told in job.message


def test_selected_words_go_to_the_erase_form(part: Any) -> None:
    fill = part("explore_tab").to_erase_form
    words, instead, keep, said, _ = fill("orb\nball", "", "a cat", "ball", "", "box", "a dog")
    assert words.splitlines() == ["ball", "orb"] and instead == "box" and "error" not in said
    assert {"a cat", "a dog"} <= set(keep.splitlines())
    assert fill("orb", "globe", "", "None", "old", "", "")[0].splitlines() == ["globe", "orb"]
    assert fill("orb", "", "", None, "old", "", "")[0].splitlines() == ["old", "orb"]
    for selected, erasure in ((" \n", "ball"), ("orb", "missing"), ("orb", "../ball")):
        unchanged = fill(selected, "", "", erasure, "old", "other", "kept")
        assert unchanged[:3] == ["old", "other", "kept"] and "class='error'" in unchanged[3] == unchanged[4]


def test_the_report_form(part: Any) -> None:
    tab = part("report_tab")
    values = [["ball", "words"], 1.0, "", "", "", 30.0, True, False, 4, 5, 64, 3, False]
    asked = tab.measurement_of(*values)
    assert [wish.name for wish in asked.erasures] == ["ball", "words"] and not asked.merge
    assert (asked.settings.steps, asked.settings.seed, asked.settings.explicit) == (5, 3, False)
    for place, value in ((0, []), (0, None), (1, -1), (1, None), (5, 0), (5, ""), (8, "x"), (9, 0), (10, 1)):
        with pytest.raises(ErasureError):
            tab.measurement_of(*values[:place], value, *values[place + 1 :])
    with pytest.raises(InvalidSettings, match="guidance"):
        tab.measurement_of(*values, False, None)
    assert "class='error'" in tab.measure("task", None, *values[1:])[1]
    assert "class='error'" in tab.shown("../x")[1]


def test_a_concept_can_be_called_explicit(routes: Any, part: Any, page: fake_gradio.Page) -> None:
    explore, report = part("explore_tab"), part("report_tab")
    measure = [["ball"], 1.0, "", "", "", 60, True, False, 8, 20, 0, 0, False]
    for read, form, route, body in (
        (explore.search_of, FORM, routes._search, {"words": ["ball"]}),
        (report.measurement_of, measure, routes._measurement, {"erasures": ["ball"]}),
    ):
        assert [read(*form, ticked).settings.sensitive for ticked in (True, False)] == [True, False]
        assert not read(*form).settings.sensitive  # as API clients sent it before there was the box
        assert route(body | {"sensitive": True}).settings.sensitive and not route(body).settings.sensitive
        assert read(*form, False, 1.5).settings.guidance == route(body | {"guidance": 1.5}).settings.guidance == 1.5
    for name in ("explore", "report"):
        (event,) = [e for e in page.events if e[4] == f"concept_erasure_submit_{name}"]
        assert event[2][-2:] == [page.of(f"{name}_sensitive"), page.of(f"{name}_guidance")]


HEAD = ["ball", "", "", "closed_form", "As set", 0]


def shown_values(page: fake_gradio.Page) -> list[Any]:
    """What the settings' widgets of the Erase form hold when it is opened, in the order of API arguments."""
    (event,) = [e for e in page.events if e[4] == "concept_erasure_submit"]
    last = [c.given["elem_id"].removeprefix("concept_erasure_") for c in event[2][-5:]]
    assert last == ["preset", "concept_pictures", "name", "compare", "effort"]
    return [c.given.get("value", c.positional[0] if c.positional else None) for c in event[2][10:-5]]


def test_the_erase_form_hardens_only_if_asked(part: Any, page: fake_gradio.Page) -> None:
    tab, values = part("erase_tab"), shown_values(page)
    assert len(values) == part("form").count()
    assert tab.request_of(*HEAD, 0, 60, 0, *values).hardening is None  # as API clients sent it before there was more
    asked = tab.request_of(*HEAD, 3, 20, 50, *values, "None", None)
    assert (asked.hardening.rounds, asked.hardening.search.seconds, asked.preview_every) == (3, 20.0, 50)
    for rounds, seconds, preview in ((99, 60, 0), (1, 0, 0), (1, None, 0), (0, 60, -1), ("x", 60, 0)):
        with pytest.raises(InvalidSettings):
            tab.request_of(*HEAD, rounds, seconds, preview, *values)


def test_settings_that_an_api_client_left_out_are_told(part: Any, page: fake_gradio.Page) -> None:
    with pytest.raises(InvalidSettings, match="9 settings, but 0 were sent"):
        part("erase_tab").request_of(*HEAD, 0, 60, 0, *shown_values(page)[:2])


def test_a_file_can_be_named(part: Any, page: fake_gradio.Page, routes: Any, library: Path) -> None:
    tab, values = part("erase_tab"), shown_values(page)
    assert tab.request_of(*HEAD, 0, 60, 0, *values, "None", None).name == ""  # as it was sent before there was a name
    asked = tab.request_of(*HEAD, 0, 60, 0, *values, "None", None, "toy", True)
    assert (asked.name, asked.compares) == ("toy", True)
    body = {"words": ["ball"], "method": "closed_form", "side": 64}
    assert routes.erase(body | {"name": "my toy"})["file"] == "my_toy.safetensors"
    again = routes.erase(body)
    assert again["file"] == "my_toy.safetensors" and "<erase:my_toy:1>" in again["message"]
    assert routes.erase(body | {"settings": {"damping": 0.2}})["file"] == "ball-2.safetensors"  # ball is another's


def test_a_preset_comes_first_and_then_what_the_user_changed(part: Any, page: fake_gradio.Page) -> None:
    tab, form, values = part("erase_tab"), part("form"), shown_values(page)
    method = find_method("esd")
    start, _ = form.offsets()["esd"]
    names = [setting.name for setting in fields(method.settings)]

    def asked(preset: str | None, **changed: Any) -> Any:
        sent = list(values)
        for name, value in changed.items():
            sent[start + names.index(name)] = value
        return tab.request_of(*HEAD[:3], "esd", *HEAD[4:], 0, 60, 0, *sent, preset, None).settings

    assert asked(None) == asked("None") == method.settings()
    assert asked("style") == method.settings(**preset_settings("style", method)) != method.settings()
    assert asked("style", spare_layout=0.5).spare_layout == 0.5
    person = asked("person", keep_weight=1.0)
    assert (person.keep_weight, person.neighbours) == (1.0, preset_settings("person", method)["neighbours"])
    assert asked("style", steps=7).spare_layout == preset_settings("style", method)["spare_layout"]
    with pytest.raises(InvalidSettings, match="no preset"):
        asked("nothing")


def test_an_effort_is_asked_for_with_what_the_user_changed(part: Any, page: fake_gradio.Page, routes: Any) -> None:
    tab, values = part("erase_tab"), shown_values(page)
    place = part("form").offsets()["esd"][0] + [f.name for f in fields(find_method("esd").settings)].index("steps")

    def asked(*effort: str | None, method: str = "esd", length: str = "As set", steps: int = 400) -> Any:
        sent = [*values[:place], steps, *values[place + 1 :]]
        head = [*HEAD[:3], method, length, HEAD[5]]
        return tab.request_of(*head, 0, 60, 0, *sent, "None", None, "", False, *effort).effort

    assert asked() == asked(None) == asked("balanced") == asked("balanced", method="closed_form") == Effort()
    assert asked("fast") == Effort("fast")
    assert asked("fast", steps=7).asked == asked("fast", length="A third of the steps").asked == {"steps"}
    with pytest.raises(InvalidSettings, match="no effort 'lazy'"):
        asked("lazy")
    with pytest.raises(InvalidSettings, match="closed_form solves its equations at once"):
        asked("fast", method="closed_form")
    body = {"words": ["ball"], "method": "esd", "settings": {"steps": 400}, "effort": "fast"}
    assert routes._erasing(body).effort == Effort("fast", frozenset({"steps"}))
    assert {one["name"] for one in routes.methods() if not one["efforts"]} == {"closed_form", "rece"}


def test_what_solves_at_once_shows_no_effort_and_has_none_chosen(part: Any, page: fake_gradio.Page) -> None:
    (event,) = [e for e in page.events if e[0] is page.of("method")]
    assert event[2][-1] is event[3][-1] is page.of("effort")
    said, *_, effort = event[1]("closed_form", "None", "low-vram")
    assert effort == {"visible": False, "value": "balanced"} and "low-vram" not in said
    said, *_, effort = event[1]("esd", "None", "low-vram")
    assert effort == {"visible": True} and "pieces that fit the free memory" in said
    (event,) = [e for e in page.events if e[0] is page.of("effort")]
    assert "twice the optimiser steps" in event[1]("esd", "style", "thorough")
    assert "Effort" not in event[1]("esd", "style", "balanced")


def test_the_form_tells_what_method_and_preset_do(part: Any) -> None:
    tab = part("erase_tab")
    assert "does not read pictures" in tab.about_method("esd", "None")
    told = tab.about_method("co_erasing", "person")
    assert "does not read pictures" not in told and "keep weight 6.0" in told and "Person" in told
    assert "Sets nothing" in part("form").about_preset("pervasive", find_method("closed_form"))


class _Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.frames: list[dict[str, str | None]] = []
        self.links: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "iframe":
            self.frames.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs))


def test_pages_stand_in_frames_without_rights(part: Any) -> None:
    pages = part("pages")
    seen = _Seen(pages.map_frame(made_up()))
    (frame,) = seen.frames
    assert set((frame["sandbox"] or "").split()) == {"allow-scripts", "allow-downloads"}  # never allow-same-origin
    assert (frame["srcdoc"] or "").count("<script") == 3 and "postMessage" in (frame["srcdoc"] or "")
    assert {"script", "img"}.isdisjoint(seen.tags) and len(seen.links) == 2
    assert all((link["href"] or "").startswith("data:") for link in seen.links)
    evil = _Seen(pages.report_frame("<p>'\"><script>broken</script>", json.dumps({"a": "</a><script>"})))
    assert evil.frames[0]["sandbox"] == "" and "script" not in evil.tags
    assert evil.frames[0]["srcdoc"] == "<p>'\"><script>broken</script>"


def test_foreign_texts_stay_texts(part: Any) -> None:
    pages = part("pages")
    table = pages.candidates(made_up(300).points)
    assert {"script", "img"}.isdisjoint(_Seen(table).tags)
    assert html.escape(HOSTILE[0]) in table and _Seen(table).tags.count("tr") == 1 + pages.LISTED
    assert "100 more are on the map" in table
    card = SimpleNamespace(files=[SimpleNamespace(name="<b>", verdict=["<script>"])])
    assert "script" not in _Seen(pages.verdicts(card)).tags


def test_the_table_counts_as_the_summary_does(part: Any) -> None:
    """What no text gives is no prompt: above the table it was counted as one, and below it was not."""
    found = made_up(300)
    beyond = replace(found.leaking[0], word="", origin="inversion")
    found = replace(found, points=(*found.typed, beyond))
    told = part("pages").candidates(found.points)
    assert found.summary().split(" still reach")[0] + " reach it, 1 of 1 embeddings that no text gives" in told


def test_what_matters_of_a_candidate_stands_left(part: Any) -> None:
    """The column is narrow: what is to the right of it is seen only by who scrolls."""
    worst = replace(next(point for point in made_up(300).points if point.leaks), hidden=False)
    row = part("pages").candidates([worst]).split("<tbody>")[1]
    cells = [html.unescape(cell.split("</td>")[0]) for cell in row.split("<td>")[1:]]
    assert cells[:4] == [worst.text, "reaches it", f"{worst.leak:.1%}", "show it"]


@pytest.fixture
def routes(part: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The routes; with a stand-in for FastAPI where that is not installed, as in a test environment without a host."""
    try:
        importlib.import_module("fastapi")
    except ImportError:
        for name, module in web_framework().items():
            monkeypatch.setitem(sys.modules, name, module)
    return part("routes")


def test_every_route_asks_for_the_password(routes: Any, a1111: SimpleNamespace) -> None:
    seen: dict[tuple[str, str], Any] = {}
    app = SimpleNamespace(
        add_api_route=lambda path, work, methods, dependencies: seen.update({(methods[0], path): dependencies})
    )
    routes.register(None, app)
    assert seen == {}  # without --api there are none
    a1111.shared.cmd_opts.api = True
    routes.register(None, app)
    assert all(len(dependencies) == 1 for dependencies in seen.values())
    posts = {path.rsplit("/", 1)[1] for method, path in seen if method == "POST"}
    assert posts == {"erase", "explore", "report", "interrupt"}
    gets = {path.removeprefix(routes.ROOT) for method, path in seen if method == "GET"}
    assert {"/explorations", "/explorations/{name}", "/reports", "/reports/{name}"} <= gets


def test_routes_explore_and_report(routes: Any, part: Any, a1111: SimpleNamespace) -> None:
    found = routes.explore({"erasure": "ball", "calls": 600, "levels": "lexical", "states": 2, "look": 0, "side": 64})
    assert found["status"] == "done" and found["tried"] >= 5 and found["file"] in routes.explorations()
    assert routes.exploration(found["file"])["words"] == ("ball",)
    body = {"erasures": ["ball", {"erasure": "ball", "strength": 0.5}], "calls": 150, "states": 2, "side": 64}
    card = routes.report(body | {"pictures": False})
    assert len(card["report"]["files"]) == 2 and routes.report_card(card["file"]) == card["report"]
    a1111.shared.cmd_opts.concept_erasure_profile = "studio"  # then who does not ask for pictures gets none
    assert not routes._measurement(body).settings.pictures
    assert not a1111.shared.state.job and not sys.modules["modules.call_queue"].queue_lock.locked()


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("explore", {"words": "ball"}, 422),
        ("explore", {"words": ["ball"], "folder": "/"}, 422),
        ("explore", {"words": ["ball"], "seconds": "long"}, 422),
        ("explore", {"words": ["ball"], "side": 10**9}, 422),
        ("explore", {"erasure": ["ball"]}, 422),
        ("explore", {"words": ["ball"], "states": 2.5}, 422),
        ("explore", {"words": ["ball"], "levels": None}, 422),
        ("explore", {"words": ["ball"], "guidance": None}, 422),
        ("report", {"erasures": ["ball"], "pictures": "no"}, 422),
        ("erase", {"words": ["ball"], "settings": {"layers": None}}, 422),
        ("explore", {"erasure": "../ball"}, 409),
        ("explore", {}, 409),
        ("explore", {"words": ["nude child"]}, 409),
        ("report", {"erasures": "ball"}, 422),
        ("report", {"erasures": []}, 422),
        ("report", {"erasures": [{"erasure": "ball", "strength": "much"}]}, 422),
        ("report", {"erasures": ["/etc/passwd"]}, 409),
        ("erase", {"words": ["ball"], "harden": 99}, 422),
        ("erase", {"words": ["ball"], "harden": "x"}, 422),
        ("erase", {"words": ["ball"], "preset": "nothing"}, 422),
        ("erase", {"words": ["ball"], "effort": "lazy"}, 422),
        ("erase", {"words": ["ball"], "effort": "balanced", "method": "rece"}, 422),
        ("erase", {"words": ["ball"], "name": ["ball"]}, 422),
        ("erase", {"words": ["ball"], "settings": ["steps"]}, 422),
        ("erase", {"words": ["ball"], "alternative": 7}, 422),
        ("erase", {"words": ["ball"], "alternative": ["box"]}, 422),
        ("erase", {"words": ["ball"], "pictures": "/etc/passwd"}, 422),
        ("erase", {"words": ["ball"], "pictures": ["/etc/passwd"]}, 422),
        ("erase", {"words": ["ball"], "pictures": [{"path": "/etc/passwd"}]}, 422),
        ("erase", {"words": ["ball"], "pictures": ["bm8="]}, 422),
        ("erase", {"words": ["ball"], "pictures": ["bm8="] * 100}, 422),
    ],
)
def test_routes_refuse_with_a_sentence(
    routes: Any, library: Path, route: str, body: dict[str, Any], status: int
) -> None:
    with pytest.raises(routes.HTTPException) as refused:
        getattr(routes, route)(body)
    assert refused.value.status_code == status
    assert refused.value.detail and str(library) not in refused.value.detail


@pytest.mark.parametrize(
    ("route", "body", "told"),
    [
        ("erase", {"settings": ["steps"]}, "settings of auto is a list; it must be an object."),
        ("erase", {"settings": None}, "settings of auto is None; it must be an object."),
        ("erase", {"method": "esd", "settings": {"stepz": 3}}, "'stepz' is not a field of settings of esd; it has "),
        ("erase", {"method": "esd", "settings": {"layers": ["x"]}}, "layers is a list; it must be "),
        ("erase", {"method": "esd", "settings": {"layers": "x" * 5000}}, "it must be a number, a short text"),
        ("erase", {"method": "x" * 5000}, "it must be a text of at most 300 characters."),
        ("erase", {"method": ""}, "There is no method ''"),
        ("erase", {"method": {}}, "method is an object; it must be a text."),
        ("erase", {"words": ["x" * 5000]}, "characters"),
        ("erase", {"words": [str(n) * 100 for n in range(5000)]}, ""),
        ("erase", {"x" * 5000: 1}, "is not a field of this request; it has alternative, effort, harden"),
        ("erase", {"side": ""}, "side is ''; it must be a number."),
        ("erase", {"side": {}}, "side is an object; it must be a number."),
        ("erase", {"side": True}, "side is True; it must be a number."),
        ("erase", {"side": 10**400}, "it must be a number."),
        ("erase", {"side": float("nan")}, "side is nan; it must be a number."),
        ("erase", {"harden": 2.7}, "harden is 2.7; it must be a whole number."),
        ("erase", {"harden_seconds": "long"}, "harden_seconds is 'long'; it must be a number."),
        ("erase", {"preset": ["object"]}, "preset is a list; it must be a text."),
        ("erase", {"effort": ["fast"]}, "effort is a list; it must be a text."),
        ("erase", {"effort": ""}, "There is no effort ''; choose from fast, balanced, thorough, low-vram."),
        ("erase", {"effort": "fast", "method": "rece"}, "effort is for methods that train, and rece solves its "),
        ("erase", {"alternative": 7}, "alternative is 7; it must be a text."),
        ("explore", {"erasure": {}}, "erasure is an object; it must be a text."),
        ("explore", {"erasure": "ball", "strength": None}, "strength is None; it must be a number."),
        ("explore", {"seconds": [60]}, "seconds is a list; it must be "),
        ("report", {"erasures": [{"erasure": "ball", "at": 1}]}, "'at' is not a field of an erasure; it has erasure"),
        ("report", {"erasures": [[]]}, "erasure is a list; it must be a text."),
        ("report", {"erasures": [""]}, "An erasure has no name; write that of a file."),
        ("report", {"erasures": ["ball"], "merge": "yes"}, "merge is 'yes'; it must be true or false."),
    ],
)
def test_routes_name_the_field_and_repeat_little(routes: Any, route: str, body: dict[str, Any], told: str) -> None:
    with pytest.raises(routes.HTTPException) as refused:
        getattr(routes, route)({"words": ["ball"]} | body if route != "report" else body)
    assert refused.value.status_code == 422
    assert told in refused.value.detail and len(refused.value.detail) <= 1001


def test_fields_that_are_null_are_left_out(routes: Any) -> None:
    nothing = dict.fromkeys(("side", "preset", "effort", "method", "alternative"))
    asked, plain = (routes._erasing({"words": ["ball"]} | more) for more in (nothing, {}))
    assert asked == plain and asked.latent_side is None and routes._erasing({"words": ["ball"], "side": 64}).latent_side
    assert routes._search({"words": ["ball"], "erasure": None, "calls": None, "side": 0}).erasure is None


def test_a_damaged_file_is_told_without_its_folder(routes: Any, library: Path) -> None:
    (library / "bad.safetensors").write_bytes(b"no")
    (bad,) = [one for one in routes.erasures() if one["problem"]]
    assert bad["name"] == "bad.safetensors" and str(library) not in bad["problem"]


@pytest.mark.parametrize("name", ["..", "../ball", "missing", "%2e%2e", ""])
def test_routes_read_nothing_outside_our_folder(routes: Any, name: str) -> None:
    for route in (routes.exploration, routes.report_card):
        with pytest.raises(routes.HTTPException) as refused:
            route(name)
        assert refused.value.status_code == 404
