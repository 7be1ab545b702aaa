"""Which build of torch ``make`` installs: with a stand-in for Python that only notes what it is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CPU = "--index-url https://download.pytorch.org/whl/cpu torch==9"
PYTHON = """#!/bin/sh
case "$*" in
    *version_info*) echo 3.12 ;;
    *urllib*) exit "$UNREACHABLE" ;;
    "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"pip "*) echo "$*" >>asked; case "$*" in *"$REFUSED"*) exit 1 ;; esac ;;
esac
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="make's environment is made by a shell script")


def asked(folder: Path, system: str = "Linux", gpu: bool = False, **variables: str) -> list[str]:
    """What pip is told to install, in order, without the options that are always there."""
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup_env.sh", folder / "tools")
    shutil.copy(ROOT / "pyproject.toml", folder)
    programs = {"python": PYTHON, "uname": f"#!/bin/sh\necho {system}\n"} | (
        {"nvidia-smi": "#!/bin/sh\n"} if gpu else {}
    )
    (folder / "bin").mkdir()
    for name, content in programs.items():
        (folder / "bin" / name).write_text(content)
        (folder / "bin" / name).chmod(0o755)
    for name in ("bash", "dirname", "cksum", "cat", "rm", "mkdir", "cp"):
        os.symlink(str(shutil.which(name)), folder / "bin" / name)
    paths = {"PATH": str(folder / "bin"), "PYTHON": str(folder / "bin" / "python"), "TORCH": "torch==9"}
    given = {"UNREACHABLE": "0", "REFUSED": "nothing"} | variables
    subprocess.run(["bash", "tools/setup_env.sh", "standalone"], cwd=folder, env=paths | given, check=True)
    lines = (folder / "asked").read_text().splitlines()
    return [line.partition(" install ")[2] for line in lines if "torch==9" in line]


def test_linux_without_a_gpu_gets_the_build_for_cpus(tmp_path: Path) -> None:
    assert asked(tmp_path / "cpu") == [CPU]
    assert asked(tmp_path / "gpu", gpu=True) == ["torch==9"]
    assert asked(tmp_path / "mac", system="Darwin") == ["torch==9"]


def test_the_default_build_is_taken_where_torchs_own_index_gives_none(tmp_path: Path) -> None:
    assert asked(tmp_path / "mirror", UNREACHABLE="1") == ["torch==9"], "not even tried: pip would retry for minutes"
    assert asked(tmp_path / "refused", REFUSED="whl/cpu") == [CPU, "torch==9"]


def test_an_index_that_was_named_is_the_only_one(tmp_path: Path) -> None:
    assert asked(tmp_path / "named", TORCH_INDEX="https://here") == ["--index-url https://here torch==9"]
