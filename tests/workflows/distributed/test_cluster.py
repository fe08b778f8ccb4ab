from __future__ import annotations

from typing import Any

import pytest
import ray

from storage.errors import UserError
from workflows.distributed import cluster


def test_a_ray_that_does_not_start_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "local_settings", lambda cpus: {})
    said = r"did not start here \(The current node timed out during startup\.\): retry when the machine is less busy\.$"
    with pytest.raises(UserError, match=f"^Ray {said}"):
        cluster.connect("local", 2)
