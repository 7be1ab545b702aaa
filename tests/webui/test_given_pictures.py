"""Pictures of a concept from the browser and from the API: read within bounds, and part of the request."""

from __future__ import annotations

import base64
import importlib
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from trainings import SHORT, interrupt_after, request

from erasure_core import concept_pictures
from erasure_core.errors import InvalidFile, InvalidSettings
from erasure_core.hosts.webui import WebuiModel

LEARNED = {"inversion_steps": 2, "own_pictures": 2, "text_share": 0.5, "picture_share": 1.0}


@pytest.fixture
def part(a1111: SimpleNamespace, library: Path) -> Any:
    return lambda name: importlib.import_module(f"concept_erasure_webui.{name}")


def content(colour: str = "red", size: tuple[int, int] = (80, 60), kind: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, kind)
    return written.getvalue()


def test_uploads_of_both_gradios_and_base64_are_the_same(part: Any, tmp_path: Path) -> None:
    given = part("given_pictures")
    (tmp_path / "one.png").write_bytes(content())
    path = str(tmp_path / "one.png")
    encoded = base64.b64encode(content()).decode()
    read = [
        *given.from_uploads([SimpleNamespace(name=path)]),  # gradio 3
        *given.from_uploads([path]),  # gradio 4
        *given.from_uploads(path),
        *given.from_base64([encoded, f"data:image/png;base64,{encoded}"]),
    ]
    assert len(read) == 5 and {picture.size for picture in read} == {(60, 60)}
    assert len({picture.tobytes() for picture in read}) == 1
    assert given.from_uploads(None) == given.from_uploads([]) == given.from_base64([]) == ()
    assert given.from_base64([base64.b64encode(content(size=(3000, 2000))).decode()])[0].size == (1024, 1024)


@pytest.mark.parametrize("text", ["/etc/passwd", "file:///etc/passwd", "", "é", base64.b64encode(b"no").decode()])
def test_what_is_no_picture_is_refused(part: Any, text: str) -> None:
    with pytest.raises((InvalidFile, InvalidSettings), match="Picture 1"):
        part("given_pictures").from_base64([text])


def test_other_formats_and_cut_files_are_refused(part: Any) -> None:
    for kind, end in (("GIF", None), ("TIFF", None), ("PPM", None), ("PNG", 60), ("JPEG", 100)):
        encoded = base64.b64encode(content(kind=kind)[:end]).decode()
        with pytest.raises(InvalidFile, match="Picture 1 cannot be read as a picture"):
            part("given_pictures").from_base64([encoded])


def test_too_many_too_large_and_too_wide(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = part("given_pictures")
    encoded = base64.b64encode(content()).decode()
    with pytest.raises(InvalidSettings, match="at most 64"):
        given.from_base64([encoded] * 65)
    with pytest.raises(InvalidSettings, match="at most 64"):
        given.from_uploads(["missing"] * 65)
    with pytest.raises(InvalidFile, match="cannot be read"):
        given.from_uploads([str(tmp_path / "missing")])
    monkeypatch.setattr(concept_pictures, "MAX_PIXELS", 80 * 60 - 1)
    with pytest.raises(InvalidFile, match="megapixels"):
        given.from_base64([encoded])
    monkeypatch.setattr(given, "MOST_BYTES", len(content()) - 1)
    monkeypatch.setattr(given, "_opened", lambda *a: pytest.fail("it was decoded"))
    (tmp_path / "one.png").write_bytes(content())
    for read in (lambda: given.from_base64([encoded]), lambda: given.from_uploads([str(tmp_path / "one.png")])):
        with pytest.raises(InvalidFile, match="MiB"):
            read()


def test_latents_do_not_hang_on_the_hosts_chance(
    part: Any, a1111: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = lambda self, pixels: torch.randn(len(pixels), 4, 8, 8)  # noqa: E731  # as the Forge family encodes
    monkeypatch.setattr(WebuiModel, "latents_of", drawn)
    model, given = WebuiModel(a1111.model, 8), part("given_pictures")
    pictures = given.from_base64([base64.b64encode(content()).decode()] * 2)
    before = torch.random.get_rng_state()
    first = given.concept_pictures(model, pictures)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.randn(1)
    assert given.concept_pictures(model, pictures).fingerprint() == first.fingerprint()
    assert given.concept_pictures(model, ()) is None


def test_pictures_are_part_of_the_request(
    part: Any, a1111: SimpleNamespace, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, given = part("jobs"), part("given_pictures")

    def asked(*colours: str) -> Any:
        sent = [base64.b64encode(content(colour)).decode() for colour in colours]
        return replace(request(jobs, "co_erasing", **SHORT, **LEARNED), pictures=given.from_base64(sent))

    done = [jobs.run_erase(asked(*colours)) for colours in ((), ("red",), ("red",), ("blue", "red"))]
    assert [job.status for job in done] == ["done"] * 4, [job.message for job in done]
    assert done[1].file == done[2].file and len({job.file for job in done}) == 3
    contents = {(library / job.file).read_bytes() for job in done}
    assert len(contents) == 3
    (library / done[1].file).unlink()
    with monkeypatch.context() as patch:
        interrupt_after(jobs, patch, 3, a1111.shared.state)
        stopped = jobs.run_erase(asked("red"))
    assert stopped.status == "stopped" and "-unfinished.safetensors" in jobs.save_stopped()
    a1111.shared.state.interrupted = False
    again = jobs.run_erase(asked("red"))
    assert again.file == done[1].file and (library / again.file).read_bytes() in contents


def test_a_method_that_reads_no_pictures_says_so(part: Any) -> None:
    jobs, given = part("jobs"), part("given_pictures")
    plain = jobs.run_erase(request(jobs, "closed_form"))
    pictures = given.from_base64([base64.b64encode(content()).decode()])
    with_pictures = jobs.run_erase(replace(request(jobs, "closed_form"), pictures=pictures))
    assert with_pictures.file == plain.file
    assert "had no part in it" in with_pictures.message and "had no part in it" not in plain.message
