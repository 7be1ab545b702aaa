"""The looks of exploration: with which guidance pictures are made, who looks at them, and the options that say so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_up import CONCEPT, QUICK, made_up
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from erasure_core import Concept, Silent
from erasure_core.boundary import ExploreSettings, evidence, explore, probe
from erasure_core.boundary.candidate import Candidate
from erasure_core.boundary.subject import GUIDANCE, Budget, Subject
from erasure_core.cli import explore as explore_command
from erasure_core.cli import report as report_command
from erasure_core.cli.main import main
from erasure_core.cli.picture_check import PictureCheck
from erasure_core.errors import InvalidFile
from erasure_core.hosts.diffusers import DiffusersModel


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model with random weights and CLIP's own vocabulary."""
    torch.manual_seed(0)
    side = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**side, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    vision = {**side, "image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    return folder


def test_clip_tells_the_concept_by_its_two_sides(clip: Path) -> None:
    check = PictureCheck.load(clip, CONCEPT)
    pictures = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert all(0 <= share <= 1 for share in check(pictures))
    seen = torch.nn.functional.normalize(check.vision(pictures), dim=1)
    assert PictureCheck(check.vision, seen[:1], -seen[:1])(pictures)[0] > 0.99
    assert PictureCheck(check.vision, -seen[:1], seen[:1])(pictures)[0] < 0.01
    twice = PictureCheck(check.vision, check.inside.repeat(4, 1), check.outside)
    assert twice(pictures) == pytest.approx(check(pictures), rel=1e-3), "a word said more often is not more probable"


def test_the_concepts_own_words_are_not_what_it_is_compared_with(clip: Path) -> None:
    ball, dog = (PictureCheck.load(clip, Concept((word,))).outside for word in ("ball", "Dog"))
    assert len(dog) == len(ball) - 1


def test_half_a_model_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="not a CLIP model"):
        PictureCheck.load(tmp_path / "nothing", CONCEPT)
    whole = load_file(clip / "model.safetensors")
    half = {name: tensor for name, tensor in whole.items() if not name.startswith("vision_model.")}
    save_file(half, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(InvalidFile, match="text and vision"):
        PictureCheck.load(tmp_path, CONCEPT)


def test_all_pictures_have_the_guidance_that_was_asked_for(
    pico: DiffusersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    denoised = probe.denoised

    def noted(subject: Subject, *given: Any) -> Tensor:
        used.append(subject.guidance)
        return denoised(subject, *given)

    monkeypatch.setattr(probe, "denoised", noted)
    for guidance in (2.5, None):
        asked = {} if guidance is None else {"guidance": guidance}
        explore(pico, CONCEPT, (), ExploreSettings(**{**QUICK, "levels": "lexical", "look": 0, **asked}))
        assert set(used) == {guidance or GUIDANCE}
        used.clear()


def test_what_is_looked_at_is_painted_with_it_too(pico: DiffusersModel) -> None:
    painted = []
    for guidance in (1.0, GUIDANCE):
        with Subject(pico, (), Silent(), Budget(None), guidance=guidance).opened() as subject:
            painted.append(evidence.paint(subject, [Candidate("a ball", "test")], seed=0, steps=2))
    assert not torch.allclose(*painted)


def test_options_reach_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    results = {"explore": made_up(20), "report": SimpleNamespace(files=(), not_painted="")}
    for command, name in ((explore_command, "explore"), (report_command, "report")):
        monkeypatch.setattr(command, "load_chosen_model", lambda *_, pictures: calls.append((pictures,)))
        monkeypatch.setattr(command, name, lambda *given, name=name: (calls.append(given), results[name])[1])
        monkeypatch.setattr(command, "read_all", lambda texts: [])
    monkeypatch.setattr(report_command, "write_report", lambda card, folder: None)
    out = ["--model", "m", "--concept", "ball", "--erasure", "e", "--out", str(tmp_path)]
    for command, plain in (("explore", []), ("report", ["--no-pictures"])):
        for more in ([], ["--guidance", "2.5", "--sensitive", "--clip", str(clip)]):
            calls.clear()
            assert main([command, *out, *plain, *more]) == 0
            (decodes,), (_, _, _, settings, _, _, detector) = calls
            assert (settings.guidance, settings.sensitive) == ((2.5, True) if more else (GUIDANCE, False))
            assert isinstance(detector, PictureCheck) == decodes == bool(more)
