"""Starts a real web UI and talks to its API. Found through the environment; see ``test_real_hosts.py``."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
START_SECONDS = 600
RELOAD_SECONDS = 20
"""Until the host has closed its old pages and routes, which answer before."""
OURS = "/concept-erasure/v1/methods"
CPU = {
    "a1111": ["--no-half", "--precision", "full", "--use-cpu", "all", "--do-not-download-clip"],
    "forge": ["--always-cpu", "--all-in-fp32"],
}


def kind_of(folder: Path) -> str:
    """``forge`` for the whole Forge family."""
    return "forge" if (folder / "modules_forge").is_dir() else "a1111"


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Inside, this checkout is among the host's extensions."""
    there = [path for path in (folder / "extensions").iterdir() if path.resolve() == ROOT]
    link = folder / "extensions" / "concept-erasure-test"
    if not there:
        link.symlink_to(ROOT, target_is_directory=True)
    try:
        yield
    finally:
        if not there:
            link.unlink()


class WebUi:
    """One running host.

    Args:
        folder: the host's checkout, with a checkpoint and, for A1111, all that it wants offline.
        python: interpreter with the host's packages.
        extra: more command-line options.
        auth: ``user:password`` of its API.
        ready: what answers when it is started; by default a route of ours.
    """

    def __init__(self, folder: Path, python: str, extra: list[str], auth: str = "", ready: str = OURS) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder, self.auth, self.base = folder, auth, f"http://127.0.0.1:{port}"
        options = shlex.split(os.environ.get("WEBUI_ARGS", "")) or CPU[kind_of(folder)]
        # Several hosts' own preparation would reach for the network; everything is there already.
        command = [python, "launch.py", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-install"]
        command += ["--skip-version-check", "--no-download-sd-model", "--disable-console-progressbars", "--api"]
        command += ["--port", str(port), *options, *extra, *(["--api-auth", auth] if auth else [])]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # the extension must be found the host's way
        self.log = (folder / "concept-erasure-test.log").open("wb")
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=self.log, stderr=self.log)
        self._wait(ready)

    def _wait(self, ready: str) -> None:
        started = time.monotonic()
        while time.monotonic() - started < START_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"the host ended; see {self.log.name}")
            try:
                # /internal/ping answers before the routes of extensions exist.
                if self.get(ready)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(2)
        raise RuntimeError(f"the host did not start; see {self.log.name}")

    def press(self, elem_id: str, *data: Any, waits: bool = True) -> list[str]:
        """Press a button that has no route: its event is found in the page's own description and sent as the page sends
        it, to gradio 3 or 4. Returns its outputs, of HTML the text."""
        page = self.get("/config")[1]
        (button,) = [one["id"] for one in page["components"] if one["props"].get("elem_id") == elem_id]
        (event,) = [
            event | {"place": place}
            for place, event in enumerate(page["dependencies"])
            if event["backend_fn"]
            and event["targets"] in ([button], [[button, "click"]])
            and event.get("trigger", "click") == "click"
        ]
        session = f"test{time.monotonic_ns()}"
        sent = {"data": [*data], "fn_index": event.get("id", event["place"]), "session_hash": session}
        is_old = page["version"].startswith("3.")
        status, answer = self.post("/run/predict" if is_old else "/queue/join", sent)
        assert status == 200, answer
        if not waits:
            return []
        return [html.unescape(str(one)) for one in (answer["data"] if is_old else self._queued(session))]

    def _queued(self, session: str) -> Any:
        with urllib.request.urlopen(f"{self.base}/queue/data?session_hash={session}", timeout=1500) as stream:
            for line in stream:
                told = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if told.get("msg") == "process_completed":
                    return told["output"]["data"]
        raise RuntimeError("the host ended the event without an answer")

    def reload_ui(self) -> None:
        """The button "Reload UI"."""
        self.press("settings_restart_gradio", waits=False)
        time.sleep(RELOAD_SECONDS)
        self._wait(OURS)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def get(self, path: str, auth: str | None = None) -> tuple[int, Any]:
        return self._call(urllib.request.Request(self.base + path), auth)

    def post(self, path: str, body: Any, auth: str | None = None) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        return self._call(urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}), auth)

    def _call(self, request: urllib.request.Request, auth: str | None) -> tuple[int, Any]:
        auth = self.auth if auth is None else auth
        if auth:
            request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=1500) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def pictures(self, prompt: str, **given: Any) -> list[Image.Image]:
        """What comes out, whichever way; why nothing did is in ``said``."""
        body = {"prompt": prompt, "seed": 1, "steps": 3, "width": 64, "height": 64, "sampler_name": "DDIM"} | given
        status, answer = self.post("/sdapi/v1/txt2img", body)
        self.said = answer if status != 200 else answer["info"]
        encoded = answer["images"] if status == 200 else []
        return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in encoded]

    def paint(self, prompt: str, **given: Any) -> str | None:
        """Hash of the pixels of the first picture; ``None`` if none came out."""
        return next(map(pixels, self.pictures(prompt, **given)), None)

    def erase(self, word: str, **given: Any) -> tuple[int, Any]:
        """Erase at once, with small pictures and one prompt to keep, unless told otherwise: what users get by default
        takes a CPU hours."""
        quick = {"method": "closed_form", "side": 64, "keep": ["a red box"]}
        return self.post("/concept-erasure/v1/erase", {"words": [word]} | quick | given)


def pixels(picture: Image.Image) -> str:
    """Hash of a picture without its metadata, which holds the prompt."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def interpreter() -> str:
    return os.environ.get("WEBUI_PYTHON", sys.executable)
