from __future__ import annotations

import shutil

import pytest

from storage.run import RunDir
from tests.serving.finished import write_language_model, write_run
from tests.serving.interpreted import write_interpreted_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("labelled"), labels=True)


@pytest.fixture(scope="session")
def speaking_run(finished_run, tmp_path_factory) -> RunDir:
    """The finished run with a language model, which finds half of the candidates."""
    run = RunDir(str(tmp_path_factory.mktemp("speaking") / "run"))
    shutil.copytree(finished_run.root, run.root)
    write_language_model(run)
    return run


@pytest.fixture(scope="session")
def unlabelled_run(tmp_path_factory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("unlabelled"), labels=False)


@pytest.fixture(scope="session")
def interpreted_run(tmp_path_factory) -> RunDir:
    """A run that can interpret what is posted; no test writes into it."""
    return write_interpreted_run(tmp_path_factory.mktemp("interpreted"))
