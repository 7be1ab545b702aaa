"""The worker loop of docs/speed.md, run as it stands there: every job is done once, by whichever worker takes it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import DOCS
from erasure_core.cli.main import parser as command_line

JOBS = 12
STAND_IN = """#!/usr/bin/env bash
# erase --model M --prompt-file F --out O [more]: notes who did what; a job that says "bad" fails
echo "$WORKER $5" >> log
sleep 0.05
grep -q bad "$5" && exit 3
cp "$5" "$7"
"""


@pytest.fixture
def loop() -> str:
    (found,) = re.findall(r"```sh\n(mkdir .*?for job in .*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="a loop for bash")
def test_workers_share_a_directory(loop: str, tmp_path: Path) -> None:
    for folder in ("jobs", "bin"):
        (tmp_path / folder).mkdir()
    command = tmp_path / "bin" / "concept-erasure"
    command.write_text(STAND_IN)
    command.chmod(0o755)
    for number in range(JOBS):
        (tmp_path / "jobs" / f"{number:04} a.yaml").write_text("bad" if number == 5 else "good")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    workers = [
        subprocess.Popen(
            ["bash", "-c", loop], cwd=tmp_path, env={"PATH": path, "MODEL": "m", "OPTIONS": "", "WORKER": str(worker)}
        )
        for worker in range(3)
    ]
    for worker in workers:
        worker.wait(timeout=60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(line.partition(" ")[2] for line in lines) == [f"claimed/{i:04} a.yaml" for i in range(JOBS)]
    left = {folder: sorted(f.stem for f in (tmp_path / folder).iterdir()) for folder in ("jobs", "claimed", "failed")}
    assert left == {"jobs": [], "claimed": [], "failed": ["0005 a"]}
    assert len(list((tmp_path / "done").glob("*.safetensors"))) == JOBS - 1


def test_its_options_are_those_of_the_command_line(loop: str) -> None:
    (call,) = re.findall(r"concept-erasure (erase .*?) \$OPTIONS", loop)
    options = command_line().parse_args([*call.split(), "--resume"])
    assert options.resume and options.prompt_file.name.endswith('.yaml"')
