from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import pytest

from models.generation import tasks
from models.generation.tasks import SEQUENCE, Task, load_tasks
from storage.errors import UserError

NINTH = "name: caption_to_both\nprompt: 'Shown: {caption}, {sid}?'\ntarget: title\n"


def test_the_eight_tasks_are_those_of_the_paper_in_its_order() -> None:
    assert [(task.inputs, task.target) for task in load_tasks()] == [
        (("sids",), "sid"),
        (("sids",), "title"),
        (("titles",), "title"),
        (("titles",), "sid"),
        (("title",), "sid"),
        (("sid",), "title"),
        (("caption",), "sid"),
        (("caption",), "title"),
    ]


def test_what_a_task_is_over_follows_from_its_prompt() -> None:
    found = load_tasks()
    assert [task.over_histories for task in found] == [True] * 4 + [False] * 4
    assert [sorted(task.columns) for task in found[-4:]] == [["title"], ["title"], ["caption"], ["caption", "title"]]
    assert SEQUENCE.every_position
    assert [task.every_position for task in found] == [True] + [False] * 7
    for prompt in ("{sids}. Which comes next?", "After {sids}:"):  # the answer is not right behind the history
        assert not Task(name="own", prompt=prompt, target="sid").every_position


def test_tasks_come_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    (own := tmp_path / "own.yaml").write_text(NINTH)
    assert [task.name for task in load_tasks(["title_to_sid", str(own), "sids_to_sid"])] == [
        "title_to_sid",
        "caption_to_both",
        "sids_to_sid",
    ]


def test_a_task_is_added_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tasks.FOLDER, folder := tmp_path / "tasks")
    (folder / "9_own.yaml").write_text(NINTH)
    before = load_tasks()
    monkeypatch.setattr(tasks, "FOLDER", folder)
    *eight, ninth = load_tasks()
    assert tuple(eight) == before
    assert ninth == load_tasks(["caption_to_both"])[0]
    assert ninth.columns == {"caption", "title"}


def test_an_installed_package_brings_the_tasks() -> None:
    root = Path(tasks.__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["models"]
    packed = {path for pattern in patterns for path in (root / "models").glob(pattern)}
    assert packed >= set(tasks.FOLDER.iterdir())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["title_to_sids"], r"^There is no task 'title_to_sids': did you mean title_to_sid\?$"),
        (["xyz"], r"^There is no task 'xyz': choose among sids_to_sid, .*, or name a YAML file\.$"),
        (["title_to_sid"] * 2, r"^Two tasks are called 'title_to_sid': leave one out, or give it another name\.$"),
        (["nowhere.yaml"], r"^There is no task at nowhere\.yaml: give its path from where you stand\.$"),
    ],
)
def test_a_wrong_name_is_told(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_tasks(names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nprompt: '{sid}'\n", "the key target is missing"),
        ("name: a\nprompt: '{sids} of {user}'\ntarget: sid\n", r"placeholder \{user\} is unknown: write one of \{sids"),
        ("name: a\nprompt: '{sid!r}'\ntarget: title\n", "is unknown"),
        ("name: a\nprompt: '{sids'\ntarget: sid\n", "expected '}' before end of string"),
        ("name: a\nprompt: What now?\ntarget: sid\n", "the prompt shows nothing"),
        ("name: a\nprompt: '{sids} and {title}'\ntarget: sid\n", "write two tasks"),
        ("name: a\nprompt: 'Item {sid}'\ntarget: sid\n", r"the prompt shows the target: take \{sid\} out"),
        ("name: a\nprompt: '{sid}'\ntarget: caption\n", "target: input should be 'sid' or 'title'"),
        ("name: a\nprompt: '{sid}'\ntarget: title\nweight: 2\n", "weight: extra inputs are not permitted"),
        ("name: a b\nprompt: '{sid}'\ntarget: title\n", "name: string should match"),
        ("- a", "must be a YAML mapping"),
        ("name: [", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (path := tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_tasks([str(path)])
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (folder := tmp_path / "own.yaml").mkdir()
    with pytest.raises(UserError, match="cannot be read as a task"):
        load_tasks([str(folder)])
    (binary := tmp_path / "binary.yml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="cannot be read as a task"):
        load_tasks([str(binary)])
