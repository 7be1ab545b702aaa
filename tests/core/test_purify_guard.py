"""Purifying paints by a caption, so that the guard stands before it, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from erasure_core import Concept, erase
from erasure_core import purify as core
from erasure_core.cli.main import main
from erasure_core.errors import InvalidConcept, InvalidFile
from erasure_core.hosts.diffusers import DiffusersModel

FORBIDDEN = "a photo of a nude child"


def test_no_forbidden_caption_is_painted(pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "invert", lambda *a, **k: pytest.fail("it painted"))
    for captions in ([FORBIDDEN], ["a ball", FORBIDDEN]):
        with pytest.raises(InvalidConcept, match="minors"):
            core.purify(pico, torch.zeros(len(captions), *pico.latent_shape), captions, [])


def test_captions_of_two_pictures_do_not_meet() -> None:
    core.check_captions(["a child with a ball", "a nude by rubens"])
    core.check_captions([])


def test_the_command_line_refuses_before_it_reads_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing")
    arguments = ["purify", "--model", missing, "--erasure", missing, "--picture", missing, "--out", str(tmp_path)]
    assert main([*arguments, "--caption", FORBIDDEN]) == InvalidConcept.exit_code
    assert "minors" in capsys.readouterr().err
    assert main([*arguments, "--caption", "a ball"]) == InvalidFile.exit_code
    assert "missing cannot be read" in capsys.readouterr().err


def test_a_caption_that_does_not_say_what_is_erased_is_told(pico: DiffusersModel) -> None:
    erasure, _ = erase(pico, Concept(("ball", "sphere")), "closed_form")
    assert "nothing of what is erased (ball, sphere)" in core.caption_misses("a nice photo", [erasure.manifest])
    assert core.caption_misses("a red ball", [erasure.manifest]) == ""
    assert core.caption_misses("a nice photo", [None]) == "", "a plain LoRA does not tell what it erases"
