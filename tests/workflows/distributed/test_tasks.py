"""Pieces of work in this process; on Ray see the stages that are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import files
from workflows.distributed.tasks import run_tasks


@pytest.mark.parametrize("content", [b"", b'{"square": ', b"\xff"])
def test_a_damaged_result_is_computed_again(tmp_path: Path, content: bytes) -> None:
    called: list[int] = []

    def square(number: int) -> int:
        called.append(number)
        return number**2

    def results() -> list[int]:
        keys = [(number,) for number in range(3)]
        return run_tasks(square, keys, folder=str(tmp_path), at_once=1, failed=str, here=True)

    assert results() == [0, 1, 4]
    (tmp_path / "1.json").write_bytes(content)
    assert results() == [0, 1, 4]
    assert called == [0, 1, 2, 1]


def test_a_finished_result_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, read, opened = [(0,), (1,)], files.read_json, list[str]()
    run_tasks(abs, keys, folder=str(tmp_path), at_once=1, failed=str, here=True)
    monkeypatch.setattr(files, "read_json", lambda uri: (opened.append(uri), read(uri))[1])
    assert run_tasks(abs, keys, folder=str(tmp_path), at_once=1, failed=str, here=True) == [0, 1]
    assert len(opened) == 2
