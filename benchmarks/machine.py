"""The context of every result: the date, the machine and the commit."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def machine() -> dict[str, object]:
    """Returns the date (UTC), processor, usable cores, memory in GiB and commit."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), platform.machine())
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "commit": commit,
    }


def with_peers(module: str, benchmark: str) -> None:
    """Restarts a benchmark in the benchmarks' environment if a module of its peers is missing in this one."""
    if importlib.util.find_spec(module) is not None:
        return
    python = Path(__file__).parent.parent / ".venv-bench" / "bin" / "python"
    if not python.exists():
        sys.exit("The peers are not installed: run `make bench-setup`.")
    os.execv(python, [str(python), "-m", benchmark, *sys.argv[1:]])  # noqa: S606 - our own interpreter
