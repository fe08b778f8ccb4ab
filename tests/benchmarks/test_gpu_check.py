from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, gpu_paths
from benchmarks.gpu_check import Measured, compare, measure


@pytest.mark.parametrize("name", gpu_paths.PATHS)
def test_every_path_runs_on_the_cpu_and_gives_the_same_again(name: str, tmp_path) -> None:
    setting = gpu_paths.Setting(torch.device("cpu"), tmp_path, gpu_paths.SMALL)
    first, again = (
        Measured(1.0, None, {key: gpu_check._array(value) for key, value in gpu_paths.PATHS[name](setting).items()})
        for _ in range(2)
    )
    found = compare(first, again)
    assert found["ok"], found
    assert found["difference"] == 0.0


def test_a_device_is_measured_in_a_process_of_its_own() -> None:
    found = gpu_check._in_process(["rqkmeans"], "cpu", small=True)["rqkmeans"]
    assert found.error is None
    assert found.seconds > 0
    assert found.arrays.keys() == {"fit_plain", "fit_balanced"}


def test_the_command_prints_one_object_and_tells_by_its_status_whether_all_is_ok(monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "PATHS", {"rows": lambda setting: {"ones": torch.ones(2)}})
    monkeypatch.setattr(gpu_check, "_in_process", lambda names, device, small: measure(names, device, small=small))
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu", "--small"])
    for status in (0, 1):
        with pytest.raises(SystemExit) as ended:
            gpu_check.main()
        assert ended.value.code == status
        found = json.loads(capsys.readouterr().out)
        assert found["gpu"] is None
        assert found["paths"]["rows"]["ok"] is (status == 0)
        monkeypatch.setattr(gpu_check, "PATHS", {"rows": lambda setting: {"ones": torch.rand(2)}})


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
