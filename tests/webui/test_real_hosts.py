"""Real hosts, driven through their API.

    WEBUI_PATH=/path/to/stable-diffusion-webui WEBUI_PYTHON=/path/to/its/python pytest tests/webui/test_real_hosts.py

The host must hold a checkpoint of the SD1 family; the wide twin of ``python -m proving_ground widen --to sd15`` is the
quickest on a CPU. ``WEBUI_ARGS`` replaces the options that make it run there. With a second checkpoint of another base
in ``WEBUI_OTHER`` switches and refiners are tested too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageChops, ImageStat
from real_host import WebUi, installed, interpreter, pixels

from erasure_core.library import read_manifest
from erasure_core.profile import profile_path, read_profile

FOLDER = Path(os.environ.get("WEBUI_PATH", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("WEBUI_PATH"), reason="set WEBUI_PATH (and WEBUI_PYTHON) to test a real web UI"
)
P = "a red ball"
SHORT = {"method": "esd", "side": 64}
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
HIRES |= {"hr_additional_modules": ["Use same choices"]}  # without it Forge's API fails by itself


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of this test's own: the host's own files are left alone."""
    return tmp_path_factory.mktemp("erasures")


def choose_checkpoint(web: WebUi, other_than: str | None) -> None:
    names = [model["title"] for model in web.get("/sdapi/v1/sd-models")[1]]
    own = next(name for name in names if not other_than or other_than not in name)
    assert web.post("/sdapi/v1/options", {"sd_model_checkpoint": own})[0] == 200


@pytest.fixture(scope="module")
def web(library: Path) -> Iterator[WebUi]:
    lora = library / "lora"
    lora.mkdir()
    with installed(FOLDER):
        found = WebUi(FOLDER, interpreter(), ["--concept-erasure-dir", str(library), "--lora-dir", str(lora)])
        try:
            # A host in which nobody has chosen one yet has nothing to go back to when a request used another.
            choose_checkpoint(found, other_than=os.environ.get("WEBUI_OTHER"))
            yield found
        finally:
            found.close()


@pytest.fixture(scope="module")
def ball(web: WebUi, library: Path) -> str:
    """The tag's name of an erasure made by the host, and another one exported as a LoRA."""
    status, answer = web.erase("ball", keep=["a red box"])
    assert status == 200, answer
    assert answer["file"] == "ball.safetensors"
    status, other = web.erase("red", alternative="blue", name="style")
    assert status == 200, other
    assert "<lora:style:1>" in exported(web, "style")
    return Path(answer["file"]).stem


def exported(web: WebUi, name: str) -> str:
    """What the Library says to the button that exports an erasure."""
    (said,) = web.press("concept_erasure_export", name)
    web.post("/sdapi/v1/refresh-loras", {})
    return said


def test_tag_panel_and_lora_in_any_order(web: WebUi, ball: str) -> None:
    wanted = {
        "base": P, "erase": f"{P}<erase:{ball}:1>", "half": f"{P}<erase:{ball}:0.5>", "lora": f"{P}<lora:style:1>",
        "both": f"{P}<erase:{ball}:1><lora:style:1>",
    }  # fmt: skip
    first = {name: web.paint(prompt) for name, prompt in wanted.items()}
    assert None not in first.values() and len(set(first.values())) == 5
    for name in ("base", "erase", "lora", "both", "erase", "lora", "base", "both", "half", "base"):
        assert web.paint(wanted[name]) == first[name], name
    panel = {"concept erasure": {"args": [True, ball, 1.0]}}
    assert web.paint(P, alwayson_scripts=panel) == first["erase"]
    assert "Concept erasure" in web.said
    assert {web.paint(wanted["erase"]) for _ in range(10)} == {first["erase"]}
    assert web.paint(P) == first["base"]


def test_a_lora_paints_as_the_erasure_that_it_was_exported_from(web: WebUi, ball: str, library: Path) -> None:
    base, erased, lora = (web.pictures(P + tag)[0] for tag in ("", "<erase:style:1>", "<lora:style:1>"))
    assert difference(erased, lora) < difference(base, erased) / 20
    settings = {"rank": 0, "steps": 2, "batch": 1, "trajectories": 1, "trajectory_steps": 2}
    status, made = web.erase("ball", **SHORT, settings=settings, name="whole")  # a full-size one
    assert status == 200 and made["status"] == "done", made
    error = re.search(r"relative error of the conversion (\S+): <lora:whole:1>", exported(web, "whole"))
    assert error and float(error[1]) < 1e-2
    erased, lora = (web.pictures(P + tag)[0] for tag in ("<erase:whole:1>", "<lora:whole:1>"))
    assert difference(erased, lora) < difference(base, erased) / 20


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of the pixels, of 255."""
    return float(sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3)


def test_cells_of_a_plot_are_painted_as_by_tags(web: WebUi, ball: str) -> None:
    plots = [one for one in web.get("/sdapi/v1/script-info")[1] if one["name"] == "x/y/z plot"]
    fields = next(one for one in plots if not one["is_img2img"])["args"]
    axis = next(one for one in fields if one["label"] == "X type")["choices"].index("[Concept Erasure] name:strength")
    values = f"None, {ball}:1, {ball}:0.5"
    wanted = {"X type": axis, "X values": values, "Draw legend": False, "Include Sub Images": True,
              "Use text inputs instead of dropdowns": True, "Y type": 0, "Z type": 0}  # fmt: skip
    sent = [wanted.get(one["label"], one["value"]) for one in fields]
    grid, *cells = web.pictures(P, script_name="x/y/z plot", script_args=sent)
    tags = ("", f"<erase:{ball}:1>", f"<erase:{ball}:0.5>")
    assert [pixels(cell) for cell in cells] == [web.paint(P + tag) for tag in tags] and grid.width == 3 * 64


def test_what_cannot_be_erased_gives_no_picture(web: WebUi, ball: str, library: Path) -> None:
    (library / "broken.safetensors").write_bytes(b"no")
    base = web.paint(P)
    for tag in ("<erase:nothing:1>", "<erase:broken:1>", f"<erase:{ball}:much>", "<erase:../secret:1>"):
        assert web.paint(P + tag) is None, tag
        assert web.paint(P) == base
    assert web.paint(P, alwayson_scripts={"concept erasure": {"args": [True, "nothing", 1.0]}}) is None
    assert web.paint(P, **HIRES, hr_prompt=f"{P}<erase:nothing:1>") is None


def test_the_hires_pass_has_its_own_tags(web: WebUi, ball: str) -> None:
    hires = HIRES | {"hr_second_pass_steps": 5}
    erase = f"{P}<erase:{ball}:1>"
    base, both, first = web.paint(P, **hires), web.paint(erase, **hires), web.paint(erase, **hires, hr_prompt=P)
    assert None not in (base, both, first) and len({base, both, first}) == 3
    assert (web.paint(P, **hires), web.paint(erase, **hires)) == (base, both)


def test_an_erasure_of_the_text_encoder_reaches_the_hires_pass(web: WebUi, ball: str) -> None:
    """Where its prompt has other LoRAs, hosts take their own text encoder again before they encode it."""
    small = {"layers": "text-encoder", "steps": 2, "trajectories": 2, "trajectory_steps": 2, "batch": 1}
    status, made = web.erase("ball", method="esd", settings=small | {"learning_rate": 0.01})
    assert status == 200 and made["status"] == "done", made
    name = Path(made["file"]).stem
    tag, lora, hires = f"<erase:{name}:1>", "<lora:style:0>", HIRES | {"hr_second_pass_steps": 5}
    plain = web.paint(f"{P}{tag}", **hires, hr_prompt=f"{P}{lora}")
    erased = web.paint(f"{P}{tag}", **hires, hr_prompt=f"{P}{tag}{lora}")
    assert None not in (plain, erased) and plain != erased
    panel = {"concept erasure": {"args": [True, name, 1.0]}}
    assert web.paint(P, **hires, hr_prompt=f"{P}{lora}", alwayson_scripts=panel) == erased


@pytest.mark.skipif(not os.environ.get("WEBUI_OTHER"), reason="set WEBUI_OTHER to a checkpoint of another base")
def test_other_checkpoints_are_refused_and_leave_no_trace(web: WebUi, ball: str) -> None:
    other, erase = os.environ["WEBUI_OTHER"], f"{P}<erase:{ball}:1>"
    base, erased = web.paint(P), web.paint(erase)
    assert web.paint(erase, override_settings={"sd_model_checkpoint": other}) is None
    assert web.paint(erase, steps=4, refiner_checkpoint=other, refiner_switch_at=0.5) is None
    assert (web.paint(P), web.paint(erase)) == (base, erased)


@pytest.fixture
def sibling(web: WebUi) -> Iterator[str]:
    """The title of another checkpoint of the same base: only its last layer differs, so that erasures fit."""
    loaded = web.get("/sdapi/v1/options")[1]["sd_model_checkpoint"]
    own = Path(next(one["filename"] for one in web.get("/sdapi/v1/sd-models")[1] if one["title"] == loaded))
    made = own.with_name("concept-erasure-sibling.safetensors")
    configuration = own.with_suffix(".yaml")
    try:
        shutil.copy(own, made)
        _change_last_layer(made)
        if configuration.exists():
            shutil.copy(configuration, made.with_suffix(".yaml"))
        assert web.post("/sdapi/v1/refresh-checkpoints", {})[0] == 200
        yield next(one["title"] for one in web.get("/sdapi/v1/sd-models")[1] if made.stem in one["title"])
    finally:
        made.unlink(missing_ok=True)
        made.with_suffix(".yaml").unlink(missing_ok=True)
        web.post("/sdapi/v1/refresh-checkpoints", {})


def _change_last_layer(path: Path) -> None:
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))["model.diffusion_model.out.2.weight"]
        start, stop = entry["data_offsets"]
        kind = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        file.seek(8 + length + start)
        values = numpy.frombuffer(file.read(stop - start), kind)
        file.seek(8 + length + start)
        file.write((values * 0.8).astype(kind).tobytes())


def test_a_checkpoint_of_the_same_base_and_back(web: WebUi, ball: str, sibling: str) -> None:
    own, erase = web.get("/sdapi/v1/options")[1]["sd_model_checkpoint"], f"{P}<erase:{ball}:1>"
    first = (web.paint(P), web.paint(erase))
    assert web.post("/sdapi/v1/options", {"sd_model_checkpoint": sibling})[0] == 200  # with the erasure on the model
    second = (web.paint(erase), web.paint(P))
    assert None not in (*first, *second) and len({*first, *second}) == 4
    assert web.paint(erase) == second[0]
    assert web.post("/sdapi/v1/options", {"sd_model_checkpoint": own})[0] == 200
    assert (web.paint(erase), web.paint(P)) == first[::-1]
    web.paint(P)
    assert web.post("/sdapi/v1/options", {"sd_model_checkpoint": sibling})[0] == 200  # and without
    assert (web.paint(P), web.paint(erase)) == second[::-1]
    assert web.post("/sdapi/v1/options", {"sd_model_checkpoint": own})[0] == 200
    assert (web.paint(P), web.paint(erase)) == first


def test_a_training_waits_its_turn_and_can_be_interrupted(web: WebUi, ball: str, library: Path) -> None:
    base = web.paint(P)
    answers: list[tuple[int, object]] = []
    settings = {"steps": 2000, "batch": 1, "trajectories": 1, "trajectory_steps": 2, "rank": 2}
    work = threading.Thread(target=lambda: answers.append(web.erase("star", **SHORT, settings=settings)))
    work.start()
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not _trains_star(web.get("/concept-erasure/v1/last-job")[1]):
        time.sleep(1)
    painted: list[str | None] = []
    queued = threading.Thread(target=lambda: painted.append(web.paint(P)))
    queued.start()
    time.sleep(3)
    assert not painted  # it waits
    assert web.post("/concept-erasure/v1/interrupt", {})[0] == 200
    work.join(600)
    queued.join(600)
    assert answers[0][0] == 200 and answers[0][1]["status"] == "stopped"  # type: ignore[index]
    assert painted == [base] and web.paint(P) == base  # the model is as it was
    (said,) = web.press("concept_erasure_save_unfinished", None)
    assert re.search(r"Wrote star-unfinished.safetensors after \d+ steps", said), said
    assert web.paint(f"{P}<erase:star-unfinished:1>") not in (None, base)
    again = web.erase("star", **SHORT, settings=settings | {"steps": 2})
    assert again[0] == 200 and again[1]["status"] == "done"
    (state,) = library.glob("*.partial")
    (said,) = web.press("concept_erasure_discard", None)
    assert "was discarded" in said and not state.exists()
    assert web.paint(f"{P}<erase:star-unfinished:1>") not in (None, base)


def _trains_star(job: dict[str, object] | None) -> bool:
    return bool(job) and "star" in str(job["title"]) and job["status"] == "running" and job["stage"] == "training"


FAST = {"side": 64, "states": 2}


def test_exploring_finds_keeps_and_leaves_the_model(web: WebUi, ball: str) -> None:
    base, erased = web.paint(P), web.paint(f"{P}<erase:{ball}:1>")
    body = FAST | {"seconds": 60, "levels": "lexical+vocabulary", "look": 2, "pictures": True}
    for erasure in ({"erasure": ball}, {"words": ["ball"]}):
        status, found = web.post("/concept-erasure/v1/explore", body | erasure)
        assert status == 200 and found["status"] == "done" and found["tried"] > 4, found
        status, saved = web.get(f"/concept-erasure/v1/explorations/{found['file']}")
        assert status == 200 and len(saved["points"]) == found["tried"] and saved["erased"] == ("erasure" in erasure)
        assert sum(bool(point["thumbnail"]) for point in saved["points"]) == saved["looked"]
    assert saved["points"][0]["leaks"]  # the untouched model paints what was asked of it
    assert (web.paint(P), web.paint(f"{P}<erase:{ball}:1>")) == (base, erased)


def test_an_interrupted_search_keeps_what_it_found(web: WebUi, ball: str) -> None:
    base = web.paint(P)
    answers: list[tuple[int, dict[str, object]]] = []
    body = FAST | {"erasure": ball, "seconds": 600, "look": 0, "levels": "lexical+vocabulary"}
    work = threading.Thread(target=lambda: answers.append(web.post("/concept-erasure/v1/explore", body)))
    work.start()
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and "prompts reach it" not in str(web.get("/sdapi/v1/progress")[1]["textinfo"]):
        time.sleep(1)
    assert web.post("/concept-erasure/v1/interrupt", {})[0] == 200
    work.join(900)
    status, found = answers[0]
    assert status == 200 and found["status"] == "stopped" and found["tried"], found
    assert web.paint(P) == base


def test_exploring_is_refused_by_the_guard(web: WebUi, ball: str) -> None:
    for body in ({"words": ["nude child"]}, {"erasure": ball, "words": ["nude"], "try": ["a schoolgirl"]}):
        status, said = web.post("/concept-erasure/v1/explore", FAST | body)
        assert status == 409 and "minors" in said
    status, said = web.erase("nude child", harden=1)
    assert status == 409 and "minors" in said


def test_a_report_compares_and_leaves_the_model(web: WebUi, ball: str, library: Path) -> None:
    base, content = web.paint(P), (library / f"{ball}.safetensors").read_bytes()
    body = FAST | {"erasures": [ball, {"erasure": ball, "strength": 0.5}], "seconds": 15, "steps": 2}
    status, made = web.post("/concept-erasure/v1/report", body)
    assert status == 200 and made["status"] == "done", made
    assert [file["strength"] for file in made["report"]["files"]] == [1.0, 0.5]
    assert web.get(f"/concept-erasure/v1/reports/{made['file']}")[1] == made["report"]
    page = (library / "reports" / made["file"] / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 9
    assert web.paint(P) == base and (library / f"{ball}.safetensors").read_bytes() == content
    for name in ("..%2F..%2Fsecret", "nothing"):
        assert web.get(f"/concept-erasure/v1/reports/{name}")[0] == 404


def test_hardening_adds_what_leaks(web: WebUi, ball: str) -> None:
    base = web.paint(P)
    status, answer = web.erase("cube", side=64, harden=1, harden_seconds=10)
    assert status == 200 and "Round 1:" in answer["message"], answer
    assert web.paint(P) == base
    made = [one for one in web.get("/concept-erasure/v1/erasures")[1] if one["name"] == answer["file"]]
    assert len(made[0]["manifest"]["settings"]["harden"]) == 1


def test_the_tab_in_a_real_browser(web: WebUi, ball: str, library: Path, tmp_path: Path) -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.environ.get("PLAYWRIGHT_CORE") or not Path(chromium).exists() or shutil.which("node") is None:
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")
    folder = os.environ.get("WEBUI_PICTURES", str(tmp_path))
    brought = shutil.copy(library / "style.safetensors", tmp_path / "brought.safetensors")
    task = {"url": web.base, "folder": folder, "erasure": ball, "seconds": 90, "file": str(brought)}
    command = ["node", str(Path(__file__).with_name("browser.mjs")), json.dumps(task)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=6000, check=False)
    seen = json.loads(ran.stdout or json.dumps({"error": ran.stderr}))
    assert "error" not in seen, (seen, folder)
    assert seen["problems"] == [] and seen["outside"] == []
    made = seen["erase"]
    assert "<erase:toy:1>" in made["said"] and made["shown"] == 2 * 64 and made["harden"] > 200
    assert any("toy" in listed for listed in made["listed"])  # without "Refresh list"
    trained = seen["trained"]
    assert "save it as it is" in trained["stopped"] and "Wrote cube-unfinished.safetensors" in trained["saved"]
    assert "was discarded" in trained["discarded"] and not list(library.glob("cube-esd-*.partial"))
    manifest = read_manifest(library / "block.safetensors")
    assert manifest and (manifest.method, manifest.steps_done) == ("auto", 4) and "cube" in manifest.words
    made = seen["strange"]
    assert "<img src=x" in made["job"] and "done" in made["job"] and made["broken"] and made["live"] == 1
    assert made["afterReload"] == made["job"] and "Loaded: " in made["model"]
    shelf = seen["library"]
    assert "<img src=x" in shelf["table"] and shelf["broken"] and "Tick the box" in shelf["refused"]
    assert "Fit: " in shelf["fit"]
    assert shelf["left"] == shelf["rows"] - 1 and not shelf["sure"]
    assert len(shelf["searched"]) == 1 and "toy.safetensors" in shelf["searched"][0]
    assert (library / "plaything.safetensors").exists() and not (library / "toy.safetensors").exists()
    assert (library / "brought.safetensors").read_bytes() == Path(brought).read_bytes()
    assert "<lora:brought:1>" in shelf["exported"] and (library / "lora" / "brought.safetensors").exists()
    profile = read_profile(profile_path(library, "playground"))
    assert [entry.file for entry in profile.entries] == ["plaything.safetensors"]
    panel = seen["panel"]
    assert "No picture was made" in panel["empty"] and f"Concept erasure: {ball}:1" in panel["erased"].replace('"', "")
    assert panel["prompt"] == f"a red ball<erase:{ball}:1:0>" and float(panel["strength"]) == 0.5
    found = seen["explore"]
    assert found["live"] and found["rows"] >= 10 and found["escaped"] and found["broken"]
    assert "ball" in found["title"] and found["download"] == "map.html"
    words = {word for word in found["selected"] if word != "ball"}
    assert words and words <= set(found["form"]) and "ball" in found["form"]
    assert "Stopped early" in seen["interrupted"]["said"] and seen["interrupted"]["map"] == 1
    assert "Report card: ball" in seen["report"]["title"] and seen["report"]["pictures"] >= 6


def test_reload_ui_leaves_the_model_and_the_erasure(web: WebUi, ball: str) -> None:
    wanted = (web.paint(P), web.paint(f"{P}<erase:{ball}:1>"))
    web.reload_ui()
    assert (web.paint(P), web.paint(f"{P}<erase:{ball}:1>")) == wanted
    web.paint(f"{P}<erase:{ball}:1>")
    web.reload_ui()  # with the erasure on the model
    assert (web.paint(P), web.paint(f"{P}<erase:{ball}:1>")) == wanted


def test_an_infotext_brings_its_erasures_back(web: WebUi, ball: str) -> None:
    """Through the API, as the button does it: what the panel cannot hold is refused and not forgotten."""
    own: dict[str, object] = {"styles": []}  # without it Forge's API fails by itself on any infotext
    erased = web.paint(P, alwayson_scripts={"concept erasure": {"args": [True, ball, 1.0]}})
    infotext = json.loads(web.said)["infotexts"][0]
    assert f"{ball}:1" in infotext
    assert web.paint(P, infotext=infotext, **own) == erased
    assert web.paint(P, infotext=infotext.replace(f"{ball}:1", f"{ball}:1:0"), **own) is None
    assert "Concept erasure refused" in web.said


def test_api_users_cannot_switch_protection_off(web: WebUi) -> None:
    web.post("/sdapi/v1/options", {"concept_erasure_profile": "studio", "concept_erasure_other_base": True})
    options = web.get("/sdapi/v1/options")[1]
    assert web.paint(P)  # there is no such profile here: with it in force nothing could be painted
    assert not options.get("concept_erasure_other_base")
    assert options.get("concept_erasure_profile") in (None, "None")


def test_a_pinned_profile_and_passwords(web: WebUi, ball: str, library: Path) -> None:
    from erasure_core.library import Library
    from erasure_core.profile import make_profile, write_profile

    base, erased = web.paint(P), web.paint(f"{P}<erase:{ball}:1>")
    write_profile(library, make_profile("studio", Library([library]), [(f"{ball}.safetensors", 1.0, 1.0)]))
    web.close()
    pinned = ["--concept-erasure-dir", str(library), "--concept-erasure-profile", "studio"]
    host = WebUi(FOLDER, interpreter(), pinned, auth="me:secret")
    try:
        assert host.paint(P) == erased != base
        assert host.paint(P, override_settings={"concept_erasure_profile": "None"}) == erased
        assert host.paint(P, alwayson_scripts={"concept erasure": {"args": [False]}}) == erased
        paths = host.get("/openapi.json")[1]["paths"]
        ours = {(kind, path) for path in paths if path.startswith("/concept-erasure/") for kind in paths[path]}
        assert len(ours) == 11
        for auth in ("", "me:wrong", "you:secret", "me:"):
            for kind, path in ours:
                route = path.replace("{name}", "one")
                status, _ = host.get(route, auth) if kind == "get" else host.post(route, {"words": ["x"]}, auth)
                assert status == 401, (kind, path, auth)
        assert host.get("/concept-erasure/v1/erasures")[0] == 200
        pinned_file = library / f"{ball}.safetensors"
        content = pinned_file.read_bytes()
        shutil.copy(library / "style.safetensors", pinned_file)  # sound, of the same base, and another
        assert host.paint(P) is None and "studio" in host.said
        pinned_file.write_bytes(content)
        assert host.paint(P) == erased
        pinned_file.unlink()
        assert host.paint(P) is None
    finally:
        host.close()
