"""A ComfyUI process of the tests' own, and a client of its HTTP and WebSocket API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parent.parent.parent
ENDS = ("execution_error", "execution_success", "execution_interrupted")
START_SECONDS, RUN_SECONDS = 240.0, 3600.0


class GraphRefused(Exception):
    """The host did not accept a graph."""


class GraphFailed(Exception):
    """A node ended with an error, or the graph was interrupted."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Events:
    """A WebSocket that only listens (RFC 6455): the host's JSON messages. Binary ones are kept in ``frames``."""

    def __init__(self, port: int) -> None:
        self.frames: list[bytes] = []
        self.client_id = uuid.uuid4().hex
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=RUN_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET /ws?clientId={self.client_id} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket",
            "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
        )  # fmt: skip
        self.socket.sendall("\r\n".join(lines).encode())
        self.file = self.socket.makefile("rb")
        while self.file.readline() not in (b"\r\n", b""):
            pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            first, length = self.file.read(2)
            if length >= 126:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            content = self.file.read(length)
            if first & 15 == 1:
                yield json.loads(content)
            elif first & 15 == 2:
                self.frames.append(content)

    def until_the_end(self) -> list[dict[str, Any]]:
        """The messages up to that which says how the graph ended, this one included."""
        told = []
        for message in self:
            told.append(message)
            if message["type"] in ENDS:
                return told
        raise AssertionError("a listening socket never ends")

    def previews(self) -> list[Image.Image]:
        """The pictures in the binary messages; newer hosts send each a second time, with the node it is of."""
        found = []
        for frame in self.frames:
            kind, start = int.from_bytes(frame[:4], "big"), frame.find(b"\xff\xd8\xff")
            if kind == 1 and start >= 0:
                found.append(Image.open(io.BytesIO(frame[start:])).convert("RGB"))
        return found

    def training_step(self, step: int) -> dict[str, Any]:
        """Wait until a training has done so many steps; the message that says so."""
        for message in self:
            data = message.get("data", {})
            told = message["type"] == "concept_erasure.progress" and data["stage"] == "training"
            if told and data["step"] >= step:
                return dict(data)
            if message["type"] in ENDS:
                raise GraphFailed(json.dumps(message))
        raise AssertionError("a listening socket never ends")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Host:
    """A running ComfyUI on the loopback interface.

    Args:
        folder: of ComfyUI.
        base: its models, input, output and user folders.
        environment: variables beside our own.
    """

    def __init__(self, folder: Path, base: Path, environment: dict[str, str] | None = None, *options: str) -> None:
        self.base, self.port = base, free_port()
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [python, str(Path(__file__).with_name("launch_host.py")), str(folder), "--cpu", "--force-fp32"]
        command += ["--fp32-text-enc", "--port", str(self.port), "--base-directory", str(base), "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:", *options]
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.log = (base / "comfyui.log").open("a")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, env={**kept, **(environment or {})}
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, ValueError):
                self.get("/system_stats")
                return
            time.sleep(0.3)
        self.close()
        raise RuntimeError(f"ComfyUI did not start:\n{(self.base / 'comfyui.log').read_text()[-3000:]}")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def open(self, path: str, body: Any = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
            return content

    def get(self, path: str) -> Any:
        return json.loads(self.open(path))

    def queue(self, prompt: dict[str, Any], **more: Any) -> str:
        """Queue a graph and return its id.

        Raises:
            GraphRefused: with the host's own words; also if only a part of the graph is refused.
        """
        try:
            answer = json.loads(self.open("/prompt", {"prompt": prompt, **more}))
        except urllib.error.HTTPError as error:
            raise GraphRefused(error.read().decode()) from error
        if answer.get("node_errors"):
            raise GraphRefused(json.dumps(answer["node_errors"]))
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The outputs of a queued graph by node id.

        Raises:
            GraphFailed: a node failed or the graph was interrupted.
        """
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            found = self.get(f"/history/{prompt_id}").get(prompt_id)
            if found is not None:
                if found["status"]["status_str"] != "success":
                    raise GraphFailed(json.dumps(found["status"]["messages"]))
                outputs: dict[str, Any] = found["outputs"]
                return outputs
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"No result:\n{(self.base / 'comfyui.log').read_text()[-3000:]}")

    def run(self, prompt: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self.wait(self.queue(prompt, **more))

    def listen(self) -> Events:
        """The messages to a browser; graphs queued with ``client_id=events.client_id`` send theirs here."""
        return Events(self.port)

    def interrupt(self) -> None:
        self.open("/interrupt", {})

    def picture_bytes(self, shown: dict[str, str]) -> bytes:
        return self.open("/view?" + urllib.parse.urlencode(shown))

    def picture_hash(self, shown: dict[str, str]) -> str:
        """Hash of a picture's pixels, without its metadata."""
        with Image.open(io.BytesIO(self.picture_bytes(shown))) as picture:
            return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


@contextlib.contextmanager
def running(folder: Path, base: Path, environment: dict[str, str] | None = None, *options: str) -> Iterator[Host]:
    host = Host(folder, base, environment, *options)
    try:
        yield host
    finally:
        host.close()


def make_base(base: Path, checkpoint: Path) -> Path:
    """A folder for models, input and output with this pack as the only custom node."""
    for name in ("custom_nodes", "models/checkpoints", "models/loras", "models/erasures", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / "concept-erasure").symlink_to(ROOT)
    (base / "models/checkpoints/twin.safetensors").symlink_to(checkpoint)
    return base


def twin(folder: Path) -> Path:
    """The proving ground's model as a checkpoint that hosts load; PROVING_GROUND_TWIN names one made before."""
    made = os.environ.get("PROVING_GROUND_TWIN", "")
    if made:
        return Path(made)
    from proving_ground.painting import load_model
    from proving_ground.widen import widen_model, write_twin

    path = folder / "twin.safetensors"
    write_twin(path, widen_model(load_model()))
    return path


def sampler(
    model: list[Any], clip: list[Any], prompt: str = "a red ball", seed: int = 1, steps: int = 4
) -> dict[str, Any]:
    """Nodes that paint one picture and save it as node ``save``; the checkpoint is node ``base``."""
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "twin.safetensors"}},
        "yes": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": prompt}},
        "no": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "blank": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "paint": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["blank", 0],
                "seed": seed, "steps": steps, "cfg": 5.0, "sampler_name": "ddim", "scheduler": "ddim_uniform",
                "denoise": 1.0,
            },
        },
        "see": {"class_type": "VAEDecode", "inputs": {"samples": ["paint", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["see", 0], "filename_prefix": "test"}},
    }  # fmt: skip


def picture_of(outputs: dict[str, Any], node: str = "save") -> dict[str, str]:
    shown: dict[str, str] = outputs[node]["images"][0]
    return shown


class Graphs:
    """Graphs around this pack's nodes, with every widget at its default unless it is given."""

    def __init__(self, host: Host) -> None:
        self.known: dict[str, Any] = host.get("/object_info")

    def node(self, kind: str, **inputs: Any) -> dict[str, Any]:
        class_type = f"ConceptErasure{kind}"
        required = self.known[class_type]["input"].get("required", {})
        defaults = {
            name: spec[1]["default"] for name, spec in required.items() if len(spec) > 1 and "default" in spec[1]
        }
        return {"class_type": class_type, "inputs": {**defaults, **inputs}}

    def erase(
        self, method: str = "esd", words: str = "ball", keep: str = "a red box", **settings: Any
    ) -> dict[str, Any]:
        """Nodes ``concept`` and ``erase`` behind the checkpoint, at the twin's own size."""
        links = {"model": ["base", 0], "clip": ["base", 1], "concept": ["concept", 0], "resolution": 64}
        return {
            "concept": self.node("Concept", words=words, keep=keep),
            "erase": self.node(f"Erase_{method}", **{**links, **settings}),
        }

    def paint(self, source: str = "base", **how: Any) -> dict[str, Any]:
        return sampler([source, 0], [source, 1], **how)

    def apply(self, file: str, **how: Any) -> dict[str, Any]:
        """Nodes ``load`` and ``apply`` behind the checkpoint."""
        links = {"model": ["base", 0], "clip": ["base", 1], "erasure": ["load", 0]}
        return {"load": self.node("Load", file=file), "apply": self.node("Apply", **{**links, **how})}
