from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, gpu_paths
from benchmarks.gpu_check import Measured, compare, measure

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", gpu_paths.PATHS)
def test_every_path_runs_on_the_cpu_and_gives_what_it_gave(name: str) -> None:
    first = measure([name], "cpu", small=True)[name]
    assert first.error is None
    assert first.arrays
    setting = gpu_paths.Setting(torch.device("cpu"), Path("unused"), gpu_paths.SMALL)
    if name in ("chat", "embedding"):  # these write their models
        assert compare(first, first)["ok"]
        return
    again = {key: gpu_check._array(value) for key, value in gpu_paths.PATHS[name](setting).items()}
    found = compare(Measured(1.0, None, again), first)
    assert found["ok"], found
    assert found["difference"] == 0.0


def test_the_command_compares_two_processes_and_prints_one_object() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "rqkmeans", "--device", "cpu", "--small"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gpu"] is None
    assert found["paths"].keys() == {"rqkmeans"}
    path = found["paths"]["rqkmeans"]
    assert path["ok"]
    assert path["difference"] == 0.0
    assert path["seconds"] > 0
    assert path["times_as_fast"] == pytest.approx(path["cpu_seconds"] / path["seconds"], rel=0.05)


def test_without_a_gpu_it_says_so_and_ends_well(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_check"])
    gpu_check.main()
    found = json.loads(capsys.readouterr().out)
    assert found["gpu"] is None
    assert "no GPU" in found["note"]


def test_an_error_of_one_path_is_told_and_leaves_the_others_alone(monkeypatch) -> None:
    def broken(setting: gpu_paths.Setting) -> gpu_paths.Results:
        raise RuntimeError("Expected all tensors to be on the same device")

    def fine(setting: gpu_paths.Setting) -> gpu_paths.Results:
        return {"ones": torch.ones(2, dtype=torch.bfloat16)}

    monkeypatch.setattr(gpu_check, "PATHS", {"broken": broken, "fine": fine})
    found = measure(["broken", "fine"], "cpu", small=True)
    told = compare(found["broken"], found["fine"])
    assert not told["ok"]
    assert "RuntimeError: Expected all tensors to be on the same device" in told["error"]
    assert "on the CPU" in compare(found["fine"], found["broken"])["error"]
    assert compare(found["fine"], found["fine"])["ok"]


@pytest.mark.parametrize(
    ("name", "found", "wanted", "difference", "ok"),
    [
        ("vectors", [1.0, 10.1], [1.0, 10.0], 0.01, True),
        ("vectors", [1.0, 11.0], [1.0, 10.0], 0.1, False),
        ("fit_loss", [1.0, 10.9], [1.0, 10.0], 0.09, True),
        ("vectors", [1.0, np.nan], [1.0, 10.0], np.inf, False),
        ("vectors", [1.0], [1.0, 10.0], np.inf, False),
        ("codes", [1, 2, 3, 5], [1, 2, 3, 4], 0.25, False),
    ],
)
def test_differences_are_relative_to_the_largest_value(
    name: str, found: list[float], wanted: list[float], difference: float, ok: bool
) -> None:
    result = compare(Measured(1.0, None, {name: np.array(found)}), Measured(2.0, None, {name: np.array(wanted)}))
    assert result["difference"] == pytest.approx(difference)
    assert result["ok"] is ok
    assert result["largest_in"] == name
    assert result["times_as_fast"] == 2.0


def test_what_one_process_writes_another_reads(tmp_path) -> None:
    results = {"a": Measured(1.5, None, {"x": np.arange(3)}), "ab": Measured(error="broken")}
    gpu_check.write(tmp_path, results)
    found = gpu_check.read(tmp_path)
    assert found["ab"] == results["ab"]
    assert found["a"].seconds == 1.5
    assert np.array_equal(found["a"].arrays["x"], np.arange(3))
