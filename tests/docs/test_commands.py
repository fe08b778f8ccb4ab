"""Every command of README and quickstart works; every `tesserec` command of the other pages has valid arguments.

What is cheap runs as written, on a small finished run in the place of the demo's. A command without a rule fails.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from storage import files
from storage.run import RunDir
from tests.docs.pages import DOCUMENTS, REPOSITORY, blocks, commands, name_of
from tests.served import served
from tests.serving.finished import write_run

RUN_HERE = [REPOSITORY / "README.md", REPOSITORY / "docs" / "quickstart.md"]
COMMANDS = list(dict.fromkeys(command for page in RUN_HERE for command in commands(page)))
FRESH = ("--run-dir", "runs/fresh")
LONG_RUNS = ("ablate_features.yaml", "amazon-beauty.yaml")  # their definitions are checked, on small catalogues


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = write_run(tmp_path_factory.mktemp("finished"), labels=True)
    (Path(run.root) / "workflow.yaml").write_text(
        f"name: demo\nseed: 0\ncatalog: {run.root}\nstages: {{ingest: {{}}}}\n"
    )
    return run


@pytest.fixture(scope="module")
def address(finished: RunDir) -> Iterator[str]:
    with served(finished) as url:
        yield url


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from workflows.catalogs.synthetic.sample import write_sample

    folder = tmp_path_factory.mktemp("catalogue") / "sample"
    write_sample(str(folder), items=80, users=20)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: RunDir, catalogue: Path) -> Path:
    """A folder like a clone in which the demo has run, with the files that the pages show."""
    for name in ("workflows", "benchmarks", "Makefile"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "runs").mkdir()
    for name in ("demo", "mine"):
        (tmp_path / "runs" / name).symlink_to(finished.root)
    (tmp_path / "runs" / "demo-catalog").symlink_to(catalogue)
    (tmp_path / "runs" / "small-catalog").symlink_to(catalogue)
    (tmp_path / "data" / "amazon").mkdir(parents=True)
    (tmp_path / "data" / "amazon" / "items.tsv").write_text("i1\tA soap\ni2\tA brush\ni3\tA comb\n")
    (tmp_path / "data" / "amazon" / "sequences.txt").write_text("u1 i1 i2 i3\nu2 i2 i3 i1\n")
    for page in RUN_HERE:
        for block in [*blocks(page, "csv"), *blocks(page, "yaml")]:
            assert block.title, f"a block of {name_of(page)} does not say which file it is"
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def serving_is_stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple]]:
    """`tesserec serve` up to the start of Ray; what it would serve. tests/serving/test_local.py starts the real one."""
    calls: list[tuple] = []
    with monkeypatch.context() as patch:
        patch.setattr("workflows.distributed.cluster.connect", lambda *_: None)
        patch.setattr("serving.local.serve_forever", lambda *arguments: calls.append(arguments))
        yield calls


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works(
    command: str,
    place: Path,
    address: str,
    tesserec: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    match shlex.split(command):
        case ["make", target]:
            done = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout
        case ["curl", "-s", url, *rest] if url.startswith("localhost:8000/"):
            known = [part.replace("user-748393", "user 4").replace("item-430802", "item 2") for part in rest]
            url = url.replace("localhost:8000", address).replace("item-430802", "item%202")
            done = subprocess.run(["curl", "-s", "--fail", url, *known], capture_output=True, text=True)
            assert done.returncode == 0, command
            answer = json.loads(done.stdout)
            if "/recommend" in url:
                assert len(answer["items"]) == 5
                assert answer["unknown"] == []
            else:
                assert answer.get("status") == "ok" or answer["item_id"] == "item 2"
        case [".venv/bin/tesserec", "sample", _, *options]:
            assert tesserec("sample", "fresh", *options)[0] == 0
        case [".venv/bin/tesserec", "init", catalog, "-o", "mine.yaml"]:
            status, out, error = tesserec("init", catalog, "-o", "mine.yaml")
            assert status == 0, error
            assert "on this machine" in out
        case [".venv/bin/tesserec", "import", name, source, folder]:
            assert tesserec("import", name, source, folder)[0] == 0
        case [".venv/bin/tesserec", "run", workflow, *options]:
            if workflow == "mine.yaml":
                assert tesserec("init", "my-catalog", "-o", "mine.yaml")[0] == 0
            if workflow.endswith("amazon-beauty.yaml"):
                assert tesserec("import", "amazon", "data/amazon", "data/amazon-beauty")[0] == 0
                options += ["--set", "stages.generate.product_codes.codewords=2"]  # for three items
            status, _, error = tesserec("check", workflow, *options, *FRESH)  # every stage of it
            assert status == 0, error
            if not workflow.endswith(LONG_RUNS):
                status, out, error = tesserec("run", workflow, *options, "--until", "ingest", *FRESH)
                assert status == 0, error
                assert "complete" in out
        case [".venv/bin/tesserec", "serve", run]:
            with serving_is_stubbed(monkeypatch) as calls:
                status, _, error = tesserec("serve", run, "--port", "18017")
            assert status == 0, error
            ((settings, *where),) = calls
            assert (settings.run, settings.open, where) == (files.absolute(run), True, ["127.0.0.1", 18017])
        case [".venv/bin/tesserec", "check", workflow, *options]:
            if workflow == "mine.yaml":
                assert tesserec("init", "my-catalog", "-o", "mine.yaml")[0] == 0
            status, out, error = tesserec("check", workflow, *options, *FRESH)
            assert status == 0, error
            assert "ingest" in out
        case [".venv/bin/tesserec", ("show" | "report") as name, *rest]:
            status, out, error = tesserec(name, *rest)
            assert status == 0, error
            assert out.strip()
        case [".venv/bin/python", "-m", module, *options]:
            assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists()
            text = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
            assert all(f'"{option}"' in text for option in options if option.startswith("--"))
        case _:
            pytest.fail(f"no rule says how to try {command!r}: add one")


def test_the_commands_of_the_other_pages_are_valid() -> None:
    from workflows import cli

    group = typer.main.get_command(cli.app)
    found = 0
    for page in DOCUMENTS:
        for command in commands(page):
            program, *arguments = shlex.split(command)
            if not program.endswith("tesserec"):
                continue
            found += 1
            name, *rest = arguments
            assert name in group.commands, f"{name_of(page)}: {command}"  # type: ignore[attr-defined]
            group.commands[name].make_context(name, rest)  # type: ignore[attr-defined]
    assert found > 20


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = {line.split(":")[0] for line in (REPOSITORY / "Makefile").read_text().splitlines() if ":" in line}
    for page in DOCUMENTS:
        for command in commands(page):
            if command.startswith("make "):
                assert command.split()[1] in targets, f"{name_of(page)}: {command}"
