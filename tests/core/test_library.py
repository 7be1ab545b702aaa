"""The library of erasure files: names from strangers, and making a file once for each set of inputs."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import StopAt

from erasure_core import Concept
from erasure_core import effort as efforts
from erasure_core import library as library_module
from erasure_core import making as module
from erasure_core.boundary import ExploreSettings
from erasure_core.checkpoint import checkpoint_path
from erasure_core.combining import converted
from erasure_core.delta import weight_of
from erasure_core.effort import Effort
from erasure_core.erasure_file import read_erasure, write_erasure
from erasure_core.errors import Cancelled, InvalidFile
from erasure_core.hosts.diffusers import DiffusersModel
from erasure_core.library import Library, confined, read_manifest, safe_stem
from erasure_core.making import Hardening, Made, make_erasure, request_key, training_path
from erasure_core.methods import find_method
from erasure_core.progress import Silent
from erasure_core.safe_files import exclusive

BALL = Concept(("ball",), keep=("a red box",))
CLOSED_FORM, ESD = find_method("closed_form"), find_method("esd")
SHORT = ESD.settings(steps=3, trajectories=2, trajectory_steps=3, batch=1)


@pytest.mark.parametrize("name", ["../a.safetensors", "/a.safetensors", "a/../b.safetensors", "C:a.safetensors",
                                  "a\\b.safetensors", ".hidden.safetensors", "a/.b/c.safetensors", "a.ckpt", "",
                                  "a\0.safetensors", "a.safetensors\n"])  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidFile):
        confined(name)


@pytest.mark.parametrize(("text", "stem"), [("a b/c", "a_b_c"), ("../..", "erasure"), ("con", "_con"), ("梵高", "梵高"),
                                            ("x" * 300, "x" * 150), ("梵" * 100, "梵" * 50)])  # fmt: skip
def test_any_text_makes_a_file_name(text: str, stem: str) -> None:
    assert safe_stem(text) == stem


def test_lists_files_of_all_folders_once(tmp_path: Path) -> None:
    for file in ("one/a.safetensors", "one/sub/b.safetensors", "two/a.safetensors", "one/.x.safetensors", "one/n.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    library = Library([tmp_path / "one", tmp_path / "two", tmp_path / "missing"])
    assert library.names() == ["a.safetensors", "sub/b.safetensors"]
    assert library.find("a.safetensors") == tmp_path / "one" / "a.safetensors"
    assert "not a safetensors file" in library.entry("a.safetensors").problem
    with pytest.raises(InvalidFile, match="There is no erasure"):
        library.find("c.safetensors")


def test_names_that_cannot_be_asked_for_are_not_listed(tmp_path: Path) -> None:
    for name in (b"a: b.safetensors", b"caf\xe9.safetensors", b"plain.safetensors"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    assert Library([tmp_path]).names() == ["plain.safetensors"]


def test_the_same_request_finds_its_file(pico: DiffusersModel, tmp_path: Path) -> None:
    library = Library([tmp_path / "new"])
    first = make_erasure(library, pico, BALL, ESD, SHORT, Silent())
    written = first.path.read_bytes()
    again = make_erasure(library, pico, BALL, ESD, SHORT, Silent())
    assert (first.reused, again.reused) == (False, True)
    assert again.path == first.path and first.path.read_bytes() == written
    assert again.history == first.history and len(again.history.losses) == 3
    assert all(
        torch.equal(first.erasure.deltas[n].change(), again.erasure.deltas[n].change()) for n in first.erasure.deltas
    )
    assert library.entry(first.path.name).manifest == first.erasure.manifest
    assert [p.name for p in tmp_path.joinpath("new").iterdir() if "partial" in p.name or "lock" in p.name] == []


def test_the_figures_of_a_training_are_kept_with_its_losses(pico: DiffusersModel, tmp_path: Path) -> None:
    method, library = find_method("all_but_one"), Library([tmp_path])
    settings = method.settings(steps=2, trajectories=2, trajectory_steps=3, batch=1, stop_below=1e-9)
    first, again = (make_erasure(library, pico, BALL, method, settings, Silent()) for _ in range(2))
    assert again.reused and again.history == first.history
    assert again.history.residual_guidance and "drift" in str(again.history.figures[-1])


def test_what_was_just_made_is_told_as_its_file_tells_it(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = module.harden

    def hardened(*inputs: Any, **named: Any) -> Any:
        erasure, history, rounds = made_by(*inputs, **named)
        told = {**erasure.manifest.settings, "harden": [{"added": ("orb",)}]}
        return replace(erasure, manifest=replace(erasure.manifest, settings=told)), history, rounds

    monkeypatch.setattr(module, "harden", hardened)
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    first, again = (make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent()) for _ in range(2))
    assert again.reused and first.erasure.manifest == again.erasure.manifest
    assert first.erasure.manifest.settings["harden"] == [{"added": ["orb"]}]


def test_other_inputs_make_other_files(pico: DiffusersModel, tmp_path: Path) -> None:
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    first = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    other = make_erasure(library, pico, replace(BALL, alternative="box", keep=()), CLOSED_FORM, settings, Silent())
    stronger = make_erasure(library, pico, BALL, CLOSED_FORM, replace(settings, damping=0.2), Silent())
    assert len({first.path, other.path, stronger.path}) == 3


def test_a_name_that_another_process_writes_to_just_now_is_left_to_it(pico: DiffusersModel, tmp_path: Path) -> None:
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    with exclusive(tmp_path / "ball.safetensors"), exclusive(tmp_path / "ball-2.safetensors"):
        made = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    assert made.path.name == "ball-3.safetensors" and library.names() == ["ball-3.safetensors"]


def test_a_round_whose_file_cannot_be_removed_does_not_lose_those_behind_it(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where another program may hold the file."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "held by another program", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    training = tmp_path / "ball-esd-0123.safetensors"
    module._Order(Library([tmp_path]), pico, ["0123"], [training], "ball").remove(0, tmp_path / "round.safetensors")


def test_hardening_is_part_of_the_request(pico: DiffusersModel) -> None:
    searches = [Hardening(rounds, ExploreSettings(seconds)) for rounds in (0, 1, 2) for seconds in (4.0, 5.0)]
    settings = CLOSED_FORM.settings()
    none, other_none, *others = (request_key(pico, BALL, CLOSED_FORM, settings, None, one) for one in searches)
    assert none == other_none == request_key(pico, BALL, CLOSED_FORM, settings)
    assert len({none, *others}) == 5


def test_a_request_is_of_the_effort_that_was_asked_for_not_of_the_memory_there_was(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(free: int, *, stop: int = 9, name: str = "low-vram") -> Made:
        monkeypatch.setattr(efforts, "free_memory", lambda device: free)
        settings = replace(SHORT, batch=4)
        return make_erasure(Library([tmp_path]), pico, BALL, ESD, settings, StopAt(stop), effort=Effort(name))

    with pytest.raises(Cancelled):
        made(0, stop=2)
    whole, again, usual = made(2**40), made(0), made(2**40, name="balanced")
    assert not whole.reused and whole.erasure.manifest.settings["batch"] == 1, "the training that was stopped"
    assert again.reused and again.path == whole.path and again.history.notes == whole.history.notes
    assert again.history.notes[0].startswith("low-vram: with 1024.0 GiB") and not usual.reused


def test_an_effort_that_needs_no_look_at_the_memory_is_the_same_request_as_its_settings(pico: DiffusersModel) -> None:
    fast = replace(ESD.settings(), steps=200, refresh=200, trajectories=96, trajectory_steps=10)
    by_hand = request_key(pico, BALL, ESD, fast)
    assert by_hand == request_key(pico, BALL, ESD, ESD.settings(), effort=Effort("fast"))
    assert by_hand != request_key(pico, BALL, ESD, ESD.settings(), effort=Effort("fast", frozenset({"steps"})))
    usual = request_key(pico, BALL, ESD, ESD.settings())
    assert usual == request_key(pico, BALL, ESD, ESD.settings(), effort=Effort("balanced"))


def test_rounds_of_a_request_are_looked_for_in_one_pass(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of hundreds of files on a slow disk was read once for each round."""
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    made = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    make_erasure(library, pico, replace(BALL, alternative="box", keep=()), CLOSED_FORM, settings, Silent())
    read: list[str] = []
    monkeypatch.setattr(library_module, "read_manifest", lambda path: (read.append(path.name), read_manifest(path))[1])
    order = module._Order(
        library, pico, [made.erasure.manifest.request, "one", "two", "three"], [tmp_path / "x"] * 4, "ball"
    )
    found = order.farthest()
    assert found is not None and found.path == made.path and found.reused
    assert len(read) == len(set(read)) == 2


def test_weights_that_the_host_has_changed_make_another_file(
    pico: DiffusersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA in front of the erasure changes the effective weights, not the base."""
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    plain = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    monkeypatch.setattr(pico, "weight", lambda name: 1.01 * weight_of(pico.layers()[name]))
    assert make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent()).path != plain.path


def test_a_damaged_file_is_made_again(pico: DiffusersModel, tmp_path: Path) -> None:
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    made = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:100])
    again = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    assert not again.reused and again.erasure.manifest == made.erasure.manifest
    assert made.path.read_bytes() == whole[:100]  # no file is ever overwritten


def test_a_stopped_training_goes_on_to_the_same_file(pico: DiffusersModel, tmp_path: Path) -> None:
    whole = make_erasure(Library([tmp_path / "whole"]), pico, BALL, ESD, SHORT, Silent())
    library = Library([tmp_path / "stopped"])
    with pytest.raises(Cancelled):
        make_erasure(library, pico, BALL, ESD, SHORT, StopAt(2))
    assert library.names() == []
    resumed = make_erasure(library, pico, BALL, ESD, SHORT, Silent())
    assert resumed.path.name == whole.path.name and resumed.path.read_bytes() == whole.path.read_bytes()


def test_new_names_never_take_a_file_that_is_there(tmp_path: Path) -> None:
    library = Library([tmp_path])
    library.free_path("x").write_bytes(b"1")
    assert library.free_path("x").name == "x-2.safetensors"
    library.free_path("x").write_bytes(b"2")
    assert library.names() == ["x.safetensors", "x-2.safetensors"]


@pytest.mark.parametrize("name", ["梵" * 100, "x" * 300])
def test_long_names_in_any_script_are_cut_and_still_numbered(name: str, tmp_path: Path) -> None:
    library = Library([tmp_path])
    for number in ("", "-2", "-3"):
        path = library.free_path(name)
        path.write_bytes(b"")
        assert path.stem.endswith(name[:50] + number) and len(checkpoint_path(path).name.encode()) < 240
    with pytest.raises(InvalidFile, match="There is no erasure"):
        library.find(f"{name}.safetensors")


def test_a_concept_of_long_letters_keeps_the_hash_of_its_request(pico: DiffusersModel, tmp_path: Path) -> None:
    concept = Concept(("梵" * 70,), "box")
    key = request_key(pico, concept, CLOSED_FORM, CLOSED_FORM.settings())
    assert training_path(Library([tmp_path]), concept, CLOSED_FORM, key).stem.endswith(f"-closed_form-{key}")


def test_a_file_has_a_name_for_people(pico: DiffusersModel, tmp_path: Path) -> None:
    library, plain, other = Library([tmp_path]), CLOSED_FORM.settings(), CLOSED_FORM.settings(damping=0.2)
    make = partial(make_erasure, library, pico, BALL, CLOSED_FORM)
    names = [make(settings, Silent()).path.stem for settings in (plain, other, plain)]
    assert names == ["ball", "ball-2", "ball"]
    wished = make(CLOSED_FORM.settings(damping=0.3), Silent(), name="../Round things.safetensors")
    assert wished.path == tmp_path / "Round_things.safetensors"
    moved = wished.path.rename(tmp_path / "another.safetensors")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "copy.safetensors").write_bytes(moved.read_bytes())
    again = make(CLOSED_FORM.settings(damping=0.3), Silent(), name="third")
    assert again.reused and again.path == moved


def test_a_converted_erasure_is_not_what_the_request_made(pico: DiffusersModel, tmp_path: Path) -> None:
    library, settings = Library([tmp_path]), CLOSED_FORM.settings()
    made = make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent())
    coarse = converted(pico, read_erasure(made.path), "low-rank", rank=1)
    write_erasure(tmp_path / "a.safetensors", coarse, pico)
    assert make_erasure(library, pico, BALL, CLOSED_FORM, settings, Silent()).path == made.path
