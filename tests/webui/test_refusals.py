"""What is asked for in a way that would do nothing is refused, and whoever asked is told why."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from generation import PROMPT, NoPicture, generate

PANEL = (True, "ball", 1.0)
REFUSED = "Concept erasure refused"


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (({"erasure": "ball"},), "first value"),
        (("ball",), "first value"),
        (([True, "ball", 1.0],), "first value"),
        ((None, "ball", 1.0), "first value"),
        ((True,), "names no erasure"),
        ((1, "None", 1.0, "", 1.0), "names no erasure"),
    ],
)
def test_a_panel_that_would_do_nothing(a1111: SimpleNamespace, library: Path, panel: Any, message: str) -> None:
    with pytest.raises(NoPicture, match=message):
        generate(a1111, panel=panel)
    assert message in a1111.last_refused.extra_generation_params[REFUSED]
    generate(a1111, panel=(0, "ball", 1.0))


def test_a_panel_without_names_where_the_erasure_is_named_elsewhere(a1111: SimpleNamespace, library: Path) -> None:
    generate(a1111, f"{PROMPT}<erase:ball>", panel=(True,))
    p = fakes.Processing([PROMPT])
    p.concept_erasure_xyz = ""  # type: ignore[attr-defined]  # the plot's cell without an erasure
    generate(a1111, p=p, panel=(True,))


@pytest.mark.parametrize("tag", ["<Erase:ball:1>", "<ERASE:ball>", "< erase:ball>", "<erase ball>", "<erase:>",
                                 "<erase:ball", "<erase:ball <erase:star>"])  # fmt: skip
def test_a_tag_that_the_host_drops(a1111: SimpleNamespace, library: Path, tag: str) -> None:
    with pytest.raises(NoPicture, match="cannot be read"):
        generate(a1111, f"{PROMPT} {tag}")
    p = fakes.Processing([f"{PROMPT}<erase:ball>"])
    p.enable_hr, p.all_hr_prompts = True, [PROMPT + tag]  # type: ignore[attr-defined]
    with pytest.raises(NoPicture, match="cannot be read"):
        generate(a1111, p=p)
    generate(a1111, "an <eraser> and an erase < 3")


@pytest.mark.parametrize("name", ["all_negative_prompts", "all_hr_negative_prompts"])
def test_a_tag_in_the_negative_prompt(a1111: SimpleNamespace, library: Path, name: str) -> None:
    p = fakes.Processing([PROMPT])
    setattr(p, name, ["ugly<Erase:ball:1>"])
    p.enable_hr, p.all_hr_prompts = True, [PROMPT]  # type: ignore[attr-defined]
    with pytest.raises(NoPicture, match="negative prompt"):
        generate(a1111, p=p)


def test_prompts_of_one_batch_with_different_tags(a1111: SimpleNamespace, library: Path) -> None:
    prompts = [PROMPT, f"{PROMPT}<erase:ball>", "a cat<erase:ball>", f"a cat{PROMPT}<erase:ball:0.5>"]
    for pair in ((0, 1), (1, 0), (1, 3)):
        with pytest.raises(NoPicture, match="one batch"):
            generate(a1111, p=fakes.Processing([prompts[i] for i in pair], batch_size=2))
    generate(a1111, prompts[1], p=fakes.Processing(prompts[1:3], batch_size=2))
    generate(a1111, p=fakes.Processing(prompts, batch_size=1))


@pytest.mark.parametrize(
    ("expanded", "message"),
    [
        (["a <Erase:ball>", "a"], "cannot be read"),
        (["a", "a<erase:ball>"], "one batch"),
        (["a<erase:nothing>", "a<erase:nothing>"], "There is no erasure"),
    ],
)
def test_tags_that_another_script_brings_in(web: SimpleNamespace, expanded: list[str], message: str) -> None:
    def painted(prompts: list[str]) -> torch.Tensor:
        p = fakes.Processing(["a __thing__"] * 2, batch_size=2)
        return generate(web, p=p, wildcards=lambda p: setattr(p, "all_prompts", prompts))

    with pytest.raises(NoPicture, match=message):
        painted(expanded)
    assert web.shared.state.interrupted
    erased = painted([f"{PROMPT}<erase:ball>"] * 2)
    assert torch.equal(erased, generate(web, panel=PANEL))


@pytest.mark.parametrize("name", ["ball", "words"])
def test_a_request_that_switches_extra_networks_off(web: SimpleNamespace, name: str) -> None:
    def painted(prompt: str = PROMPT, panel: tuple[Any, ...] = ()) -> torch.Tensor:
        p = fakes.Processing([prompt])
        p.disable_extra_networks = True
        return generate(web, p=p, panel=panel)

    base, erased = generate(web), generate(web, panel=(True, name, 1.0))
    assert torch.equal(painted(), base)  # with nothing left of the one before
    assert torch.equal(painted(panel=(True, name, 1.0)), erased)
    assert torch.equal(painted(), base) and torch.equal(painted(f"{PROMPT}<erase:{name}>"), erased)


@pytest.mark.parametrize(("prompt", "hr_prompt"), [(PROMPT, "<erase:ball>"), ("<erase:ball>", PROMPT)])
def test_a_hires_prompt_whose_tags_the_host_does_not_read(web: SimpleNamespace, prompt: str, hr_prompt: str) -> None:
    def of(hr_prompt: str) -> fakes.Processing:
        p = fakes.Processing([prompt])
        p.disable_extra_networks = True
        p.enable_hr, p.all_hr_prompts = True, [hr_prompt]  # type: ignore[attr-defined]
        return p

    with pytest.raises(NoPicture, match="with disable_extra_networks the host does not read them"):
        generate(web, p=of(hr_prompt))
    generate(web, p=of(prompt))


def test_a_later_batch_that_is_refused_was_not_the_first(a1111: SimpleNamespace, library: Path) -> None:
    p = fakes.Processing([PROMPT, "<Erase:ball>"])
    a1111.gate.begin(fakes.Processing([PROMPT]), ())
    for number in (0, 1):
        p.prompts, p.negative_prompts = p.all_prompts[number : number + 1], []  # type: ignore[attr-defined]
        a1111.gate.begin_batch(p, number)
    assert p.prompts == [] and p.comments[-1].endswith("No further picture was made.")  # type: ignore[attr-defined]
    with pytest.raises(NoPicture, match=r"lower case\. No picture was made"):
        generate(a1111, p=p)  # asked for again


def test_another_network_that_paints(a1111: SimpleNamespace, library: Path) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    host: Any = sys.modules["modules.sd_unet"]
    base, erased = generate(a1111), generate(a1111, panel=PANEL)
    host.current_unet = object()
    assert torch.equal(generate(a1111), base)  # nobody asked for anything
    with pytest.raises(a1111.gate.Refused, match="'None' under Settings, SD Unet"):
        generate(a1111, panel=PANEL)
    words = generate(a1111, panel=(True, "words", 1.0))  # reaches the text encoder all the same
    host.current_unet = None
    assert torch.equal(generate(a1111, panel=(True, "words", 1.0)), words)

    def switch_on() -> None:
        host.current_unet = object()

    with pytest.raises(a1111.gate.Refused, match="'None' under Settings, SD Unet"):
        generate(a1111, panel=PANEL, before_step=switch_on)
    host.current_unet = None
    assert torch.equal(generate(a1111, panel=PANEL), erased)


def test_prompts_encoded_with_an_erasure_are_not_used_without_it(web: SimpleNamespace) -> None:
    base, erased = generate(web), generate(web, panel=(True, "words", 1.0))
    assert not torch.equal(base, erased)
    web.session.SESSION.take_off()  # a training, a search, a report
    assert torch.equal(generate(web), base)
    assert torch.equal(generate(web, panel=(True, "words", 1.0)), erased)
    web.session.SESSION.take_off()
    web.session.SESSION.model_was_loaded(web.model)
    assert torch.equal(generate(web), base)


def test_prompts_encoded_while_an_erasure_failed_are_not_used_with_it(
    a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    erased = generate(a1111, panel=(True, "words", 1.0))
    fakes.Processing.cached_c[:] = [None, None]  # another prompt was painted meanwhile
    with monkeypatch.context() as patch, pytest.raises(a1111.gate.Refused):
        patch.setattr(type(a1111.session.SESSION.patcher()), "_exchange", lambda *_: 0.0)
        generate(a1111, panel=(True, "words", 0.5))
    assert torch.equal(generate(a1111, panel=(True, "words", 1.0)), erased)


def test_another_strength_is_measured_anew(forge: SimpleNamespace, library: Path) -> None:
    fakes.Processing.cached_c[:] = [None, None]
    generate(forge, panel=PANEL)
    forge.model.forge_objects_original.unet.lora_loader.refresh = lambda *a, **k: None  # leaves the weights in place
    patcher, small = forge.session.SESSION.patcher(), forge.session.SESSION.bind([wish(forge, "ball", 1e-3)])
    patcher.apply(small)
    assert patcher.in_effect(small)  # the whole change is there, and more
    with pytest.raises(forge.gate.Refused, match="not on the model"):
        generate(forge, panel=(True, "ball", 4.0))


def wish(host: SimpleNamespace, name: str, strength: float) -> Any:
    return host.gate.wishes.Wish(name, strength, strength)


def test_api_clients_read_why_and_the_next_generation_does_not_say_so(web: SimpleNamespace) -> None:
    p = fakes.Processing([PROMPT])
    p.extra_generation_params["Hires upscale"] = 2
    with pytest.raises(NoPicture):
        generate(web, p=p, panel=(True, "nothing", 1.0))
    reason = p.extra_generation_params[REFUSED]
    assert "There is no erasure" in reason and "No picture was made" in reason
    generate(web, p=p, panel=PANEL)
    assert p.extra_generation_params == {"Hires upscale": 2, "Concept erasure": "ball:1"}
    generate(web, p=p)
    assert p.extra_generation_params == {"Hires upscale": 2}


def test_cells_of_a_plot_say_what_each_of_them_did(a1111: SimpleNamespace, library: Path) -> None:
    whole = fakes.Processing([PROMPT])
    cells = [copy.copy(whole) for _ in range(3)]  # as the host does it: they share their dict
    for cell, value in zip(cells, ("ball:1", "", "words:0.5"), strict=True):
        cell.concept_erasure_xyz = value  # type: ignore[attr-defined]
        generate(a1111, p=cell)
    said = [cell.extra_generation_params.get("Concept erasure") for cell in (*cells, whole)]
    assert said == ["ball:1", None, "words:0.5", None]


def test_more_erasures_than_the_panel_holds(a1111: SimpleNamespace, library: Path) -> None:
    four = (True, "ball", 1.0, "words", 1.0, "None", 1.0, "None", 1.0)
    generate(a1111, panel=(*four, ""))
    generate(a1111, panel=(False, *four[1:], "star"))
    with pytest.raises(NoPicture, match="holds 4 erasures, and the request names more"):
        generate(a1111, panel=(*four, "star"))


def test_two_axes_of_a_plot_count_both(web: SimpleNamespace) -> None:
    xyz: Any = importlib.import_module("concept_erasure_webui.xyz")
    p = fakes.Processing([PROMPT])
    for value in ("ball:0.5", "None", "words:0.5"):
        xyz._apply(p, value, [])
    erased = generate(web, p=p)
    assert p.extra_generation_params["Concept erasure"] == "ball:0.5, words:0.5"
    assert torch.equal(generate(web, f"{PROMPT}<erase:ball:0.5><erase:words:0.5>"), erased)


@pytest.fixture
def plot(web: SimpleNamespace) -> fakes.Plot:
    found = fakes.Plot()
    sys.modules["modules.scripts"].scripts_data = [SimpleNamespace(module=found)]  # type: ignore[attr-defined]
    xyz: Any = importlib.import_module("concept_erasure_webui.xyz")
    for _ in range(2):  # a reload of the UI that finds the module again
        xyz.register()
    return found


def other_prompt(p: Any, value: str, values: Any) -> None:
    """The host's own axis "Prompt S/R"."""
    p.all_prompts = [PROMPT + value]


@pytest.mark.parametrize("axis", ["ours", "of prompts"])
def test_a_cell_of_a_plot_that_failed_is_not_part_of_the_next(
    web: SimpleNamespace, plot: fakes.Plot, axis: str
) -> None:
    xyz: Any = importlib.import_module("concept_erasure_webui.xyz")
    apply, values = (xyz._apply, ("ball:1", "None")) if axis == "ours" else (other_prompt, ("<erase:ball:1>", ""))
    base, whole = generate(web), fakes.Processing([PROMPT])

    def fail() -> None:
        raise MemoryError

    steps = iter([fail, lambda: None])
    web.shared.state.begin("plot")
    failed, second = plot.run(
        whole, list(values), apply, lambda p: generate(web, p=p, task=False, before_step=next(steps))
    )
    assert isinstance(failed, MemoryError) and torch.equal(second, base)


def test_what_is_painted_inside_of_a_cell_is_a_part_of_it(web: SimpleNamespace, plot: fakes.Plot) -> None:
    made: list[torch.Tensor] = []

    def cell(p: fakes.Processing) -> torch.Tensor:
        # Extensions use a copy of the cell's own object, too.
        inner = copy.copy(p)
        inner.all_prompts = [PROMPT]
        return generate(web, p=p, task=False, inside=lambda: made.append(generate(web, p=inner, task=False)))

    web.shared.state.begin("plot")
    erased, base = plot.run(fakes.Processing([PROMPT]), ["<erase:ball:1>", ""], other_prompt, cell)
    assert not torch.equal(erased, base) and torch.equal(made[0], erased) and torch.equal(made[1], base)


def test_the_infotext_tells_what_a_part_of_a_generation_got_from_that(web: SimpleNamespace) -> None:
    said: list[Any] = []

    def inside(prompt: str = PROMPT, **given: Any) -> None:
        p = fakes.Processing([prompt])
        generate(web, p=p, task=False, **given)
        said.append(p.extra_generation_params.get("Concept erasure"))

    generate(web, f"{PROMPT}<erase:ball:0.5>", panel=(True, "words", 1.0), inside=inside)
    generate(web, panel=PANEL, inside=lambda: inside(f"{PROMPT}<erase:ball:0.5>"))  # the prompt tells it
    assert said == ["words:1, ball:0.5", None]
    if web.kind == "a1111":  # without our script
        generate(web, panel=PANEL, inside=lambda: inside(scripts=False))
        assert said[-1] == "ball:1"
