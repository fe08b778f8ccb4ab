from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from models.common.settings import read_text
from storage import files
from storage.errors import UserError


def test_a_file_of_settings_may_lie_in_an_object_store(s3) -> None:
    bucket = s3.bucket("settings")
    files.write_bytes(f"{bucket}/runs/mine/workflow.yaml", "name: käse\n".encode())
    assert read_text(f"{bucket}/runs/mine/workflow.yaml", "workflow definition") == "name: käse\n"
    with pytest.raises(UserError, match=rf"^There is no workflow definition at {bucket}/none\.yaml: give its path"):
        read_text(f"{bucket}/none.yaml", "workflow definition")
    s3.fail(403)
    with pytest.raises(UserError, match=rf"^{bucket}/runs/mine/workflow\.yaml cannot be read as a workflow definition"):
        read_text(f"{bucket}/runs/mine/workflow.yaml", "workflow definition")


def test_what_is_no_text_and_what_has_no_such_scheme_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
    for uri in (str(tmp_path / "a.yaml"), f"file://{tmp_path}/a.yaml", str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(UserError, match="cannot be read as a task"):
            read_text(uri, "task")
    with pytest.raises(UserError, match=r"^s4:.*cannot be read as a task: Cannot open 's4://bucket/a'"):
        read_text("s4://bucket/a", "task")


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_text, args=["a: 1"]).start()
    assert read_text(str(tmp_path / "pipe"), "task") == "a: 1"
