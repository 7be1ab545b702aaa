"""Generations that extensions start inside of another one, as ADetailer does: erased as that one is, or no picture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
import torch
from generation import PROMPT, NoPicture, generate
from torch import Tensor

PANEL = (True, "ball", 1.0)


def inside(web: SimpleNamespace, work: Callable[[], Tensor], prompt: str = PROMPT, **given: Any) -> Tensor:
    """What an extension paints in the middle of a generation."""
    made: list[Tensor] = []
    generate(web, prompt, inside=lambda: made.append(work()), **given)
    return made[0]


def unknown(web: SimpleNamespace, prompt: str = PROMPT) -> Callable[[], Tensor]:
    """A generation in the same task, without our script."""
    return lambda: generate(web, prompt, scripts=False, task=False)


@pytest.mark.parametrize(("prompt", "panel"), [(PROMPT, PANEL), (f"{PROMPT}<erase:ball>", ())])
def test_without_our_script_it_is_erased_or_refused(web: SimpleNamespace, prompt: str, panel: tuple[Any, ...]) -> None:
    base, erased = generate(web), generate(web, panel=PANEL)
    if web.kind == "a1111":
        assert torch.equal(inside(web, unknown(web), prompt, panel=panel), erased)
    else:
        with pytest.raises(web.gate.Refused, match="ADetailer"):
            inside(web, unknown(web), prompt, panel=panel)
    assert torch.equal(inside(web, unknown(web)), base)  # nobody asked for anything


@pytest.mark.parametrize("networks", [True, False])
def test_a_copy_of_its_own_object_without_our_script(web: SimpleNamespace, networks: bool) -> None:
    base, erased = generate(web), generate(web, panel=PANEL)

    def painted(prompt: str) -> Tensor:
        outer = fakes.Processing([f"{prompt}<erase:ball>" if prompt else PROMPT])

        def part() -> Tensor:
            p = copy.copy(outer)
            p.all_prompts, p.disable_extra_networks = [PROMPT], not networks
            return generate(web, p=p, scripts=False, task=False)

        return inside(web, part, p=outer)

    if web.kind == "a1111":
        assert torch.equal(painted(PROMPT), erased)
    else:
        with pytest.raises(web.gate.Refused, match="ADetailer"):
            painted(PROMPT)
    assert torch.equal(painted(""), base)


def test_tags_that_neither_our_script_nor_the_host_reads(web: SimpleNamespace) -> None:
    erased = generate(web, panel=PANEL)

    def painted(prompt: str) -> Tensor:
        p = fakes.Processing([prompt])
        p.disable_extra_networks = True
        return generate(web, p=p, scripts=False)

    if web.kind == "a1111":
        assert torch.equal(painted(f"{PROMPT}<erase:ball>"), erased)
    else:
        with pytest.raises(web.gate.Refused, match="not on the model"):
            painted(f"{PROMPT}<erase:ball>")
    with pytest.raises(web.gate.Refused, match="cannot be read"):
        painted(f"{PROMPT}<Erase:ball>")
    assert not torch.equal(painted(PROMPT), erased)


def test_a_sampler_that_does_not_say_what_it_paints_for(web: SimpleNamespace) -> None:
    def unnamed() -> None:
        params = fakes.Params(None, torch.ones(1, 4, 8, 8))
        web.gate.check_step(params)
        _ = params.x * 1.0

    generate(web, before_step=unnamed)
    with pytest.raises(web.gate.Refused, match="does not say what it paints for"):
        generate(web, panel=PANEL, before_step=unnamed)


def test_an_erased_text_encoder_counts_too(web: SimpleNamespace) -> None:
    erased = generate(web, panel=(True, "words", 1.0))
    if web.kind == "a1111":
        assert torch.equal(inside(web, unknown(web), panel=(True, "words", 1.0)), erased)
    else:
        with pytest.raises(web.gate.Refused, match="ADetailer"):
            inside(web, unknown(web), panel=(True, "words", 1.0))


def test_with_our_script_it_is_erased_as_much_and_not_twice(web: SimpleNamespace) -> None:
    erased, half = generate(web, panel=PANEL), generate(web, panel=(True, "ball", 0.5))
    for panel in ((), PANEL):
        assert torch.equal(inside(web, lambda panel=panel: generate(web, panel=panel, task=False), panel=PANEL), erased)
    own = inside(web, lambda: generate(web, f"{PROMPT}<erase:ball:0.5>", task=False), panel=PANEL)
    assert torch.equal(own, half)  # its own strength of the same erasure counts


def test_an_axis_of_the_xyz_plot_counts_too(web: SimpleNamespace) -> None:
    erased = generate(web, panel=PANEL)
    on = (True, "None", 1.0)
    for value, wanted in (("ball:1", erased), ("", generate(web))):
        p = fakes.Processing([PROMPT])
        p.concept_erasure_xyz = value  # type: ignore[attr-defined]
        assert torch.equal(inside(web, lambda: generate(web, panel=on, task=False), p=p, panel=on), wanted)


def test_what_comes_later_is_not_part_of_it(web: SimpleNamespace) -> None:
    base = generate(web)
    generate(web, panel=PANEL)
    assert torch.equal(generate(web, task=False), base)  # the next picture of the same task
    assert torch.equal(generate(web, scripts=False), base)  # another task
    generate(web, panel=PANEL)
    web.shared.state.end()
    assert torch.equal(unknown(web)(), base)  # between tasks


def test_a_generation_that_failed_or_was_refused_is_forgotten(web: SimpleNamespace) -> None:
    base = generate(web)

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        generate(web, panel=PANEL, before_step=fail)
    assert torch.equal(generate(web), base)
    with pytest.raises(NoPicture):
        generate(web, panel=(True, "nothing", 1.0))
    assert torch.equal(generate(web, scripts=False), base)


def test_in_a_refused_generation_nothing_is_painted(web: SimpleNamespace) -> None:
    with pytest.raises(NoPicture):
        generate(web, panel=(True, "nothing", 1.0))
    web.shared.state.interrupted = False  # whatever an extension makes of that
    with pytest.raises(web.gate.Refused, match="There is no erasure"):
        unknown(web)()


def test_the_empty_prompt_of_a_model_that_was_just_read_is_not_erased(a1111: SimpleNamespace, library: Path) -> None:
    fakes.Processing.cached_c[:] = [None, None]

    def read_a_model() -> None:
        p = fakes.Processing([])
        p.all_prompts = None  # type: ignore[assignment]
        a1111.gate.EraseTag().activate(p, [])
        assert a1111.session.SESSION.patcher().in_effect([])

    generate(a1111, panel=(True, "words", 1.0), inside=read_a_model)
