"""Real hosts, driven through their API.

    WEBUI_PATH=/path/to/stable-diffusion-webui WEBUI_PYTHON=/path/to/its/python pytest tests/webui/test_real_hosts.py

The host must hold a checkpoint of the SD1 family; the wide twin of ``python -m proving_ground widen --to sd15`` is the
quickest on a CPU. ``WEBUI_ARGS`` replaces the options that make it run there. With a second checkpoint of another base
in ``WEBUI_OTHER`` switches and refiners are tested too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_host import WebUi, installed, interpreter

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
    """The tag's name of an erasure made by the host, and a LoRA beside it."""
    status, answer = web.erase("ball", keep=["a red box"])
    assert status == 200, answer
    status, other = web.erase("red", alternative="blue")
    assert status == 200, other
    shutil.copy(library / other["file"], library / "lora" / "style.safetensors")
    web.post("/sdapi/v1/refresh-loras", {})
    return Path(answer["file"]).stem


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


def test_a_training_waits_its_turn_and_can_be_interrupted(web: WebUi, ball: str) -> None:
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
    again = web.erase("star", **SHORT, settings=settings | {"steps": 2})
    assert again[0] == 200 and again[1]["status"] == "done"


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


def test_the_tab_in_a_real_browser(web: WebUi, ball: str, tmp_path: Path) -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not os.environ.get("PLAYWRIGHT_CORE") or not Path(chromium).exists() or shutil.which("node") is None:
        pytest.skip("needs node, a chromium and PLAYWRIGHT_CORE (the folder of the npm package playwright-core)")
    folder = os.environ.get("WEBUI_PICTURES", str(tmp_path))
    task = {"url": web.base, "folder": folder, "erasure": ball, "seconds": 90}
    command = ["node", str(Path(__file__).with_name("browser.mjs")), json.dumps(task)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False)
    seen = json.loads(ran.stdout or json.dumps({"error": ran.stderr}))
    assert "error" not in seen, (seen, folder)
    assert seen["problems"] == [] and seen["outside"] == []
    made = seen["erase"]
    assert "<img src=x" in made["job"] and "done" in made["job"] and made["broken"] and made["live"] == 1
    assert made["afterReload"] == made["job"] and "Loaded: " in made["model"]
    shelf = seen["library"]
    assert "<img src=x" in shelf["table"] and shelf["broken"] and "Tick the box" in shelf["refused"]
    assert "Fit: " in shelf["fit"]
    assert shelf["left"] == shelf["rows"] - 1 and not shelf["sure"]
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
        for auth in ("me:wrong", "you:secret"):
            assert host.get("/concept-erasure/v1/erasures", auth)[0] == 401
            for route in ("explorations", "reports", "reports/one"):
                assert host.get(f"/concept-erasure/v1/{route}", auth)[0] == 401
            for route in ("erase", "explore", "report", "interrupt"):
                assert host.post(f"/concept-erasure/v1/{route}", {"words": ["x"]}, auth)[0] == 401
        (library / f"{ball}.safetensors").unlink()
        assert host.paint(P) is None
    finally:
        host.close()
