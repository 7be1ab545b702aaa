"""The GPU check, rehearsed on the CPU with small models."""

import pytest
import torch

from benchmarks import gpu_check


def test_without_a_gpu_it_says_so_and_succeeds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out == "no GPU\n"


def test_every_check_holds_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cpu", "--tiny"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(gpu_check.CHECKS)
    assert all(" ok " in line for line in lines)


def test_a_failed_check_fails_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", {"cancel": gpu_check.cancels})
    monkeypatch.setattr(gpu_check.StopAt, "cancelled", lambda self: False)
    assert gpu_check.main(["--device", "cpu", "--tiny"]) == 1
    assert "FAILED  AssertionError: it was not stopped" in capsys.readouterr().out
