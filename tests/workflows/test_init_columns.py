"""What `init` makes of the columns of a catalogue: labels, features, and what has another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import UserError
from tests.workflows.test_init import stages_of
from workflows.engine.definition import load
from workflows.engine.preflight import preflight
from workflows.init import init


@pytest.mark.parametrize(
    ("values", "least"), [([-1, 0.5], 0.05), ([1, 2, 3, 4, 5], 4), ([0, 1.2], 1), ([-9, 9], 4), ([1.5], None)]
)
def test_some_ratings_count_as_liked(tmp_path: Path, values: list[float], least: float | None) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},vase\n" for n in range(9)))
    events = "".join(f"u{n % 5},{n % 9},2026-01-{1 + n % 28:02},{values[n % len(values)]}\n" for n in range(90))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp,score\n" + events)
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    settings = None if least is None else {"label": "score", "positive_from": least}  # one value rates nothing
    assert stages_of(tmp_path / "mine.yaml")["ingest"] == settings
    preflight(load(str(tmp_path / "mine.yaml"), []), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("column", "values", "settings"),
    [
        ("Label", [0, 1], {"label": "Label"}),
        ("Rating", [1, 3, 5], {"label": "Rating", "positive_from": 4}),
        ("Label,rating", ["Sony,1", "EMI,3", "Sony,5"], {"label": "rating", "positive_from": 4}),
    ],
)
def test_labels_may_be_named_in_capitals(tmp_path: Path, column: str, values: list[object], settings: object) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},vase\n" for n in range(9)))
    events = "".join(f"u{n % 5},{n % 9},2026-01-{1 + n % 28:02},{values[n % len(values)]}\n" for n in range(90))
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp,{column}\n" + events)
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    assert stages_of(tmp_path / "mine.yaml")["ingest"] == settings
    preflight(load(str(tmp_path / "mine.yaml"), []), str(tmp_path / "run"))


def test_what_tells_the_label_is_told(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{n},vase\n" for n in range(9)))
    events = "".join(
        f"u{n % 5},{n % 9},2026-01-{1 + n % 28:02},{n % 3 // 2},{n % 3 + n / 999},{n % 7},{n % 5}\n" for n in range(90)
    )
    names = "user_id,item_id,timestamp,label,watched,hour,rating"
    (tmp_path / "interactions.csv").write_text(f"{names}\n{events}")
    said = "\n".join(init(str(tmp_path), str(tmp_path / "mine.yaml")))
    assert "the log's watched tells nearly alone what was liked: remove it if it is known only after the event" in said
    assert "the log's hour tells" not in said
    assert "watched, hour (become context features); rating (known after the event alone, not read)" in said


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("item_id,Title,Media", "rename 'Title' to title and rename 'Media' to media."),
        ("item_id,name,image_url", "rename 'name' to title and rename 'image_url' to media."),
        ("item_id,name,headline,image_url,images", "rename 'name' to title and rename 'image_url' to media."),
        ("item_id,Item_ID,maker,price", "give the items one."),
    ],
)
def test_columns_under_usual_names_are_told(tmp_path: Path, header: str, told: str) -> None:
    (tmp_path / "items.csv").write_text(f"{header}\na{',x' * header.count(',')}\n")
    with pytest.raises(UserError) as caught:
        init(str(tmp_path), str(tmp_path / "mine.yaml"))
    assert str(caught.value).endswith(told)


def test_pictures_that_do_not_open_are_told_and_not_allowed_for(tmp_path: Path) -> None:
    """Where none opens, something is wrong: the run is to end with it, and not to do without pictures."""
    (tmp_path / "items.csv").write_text("item_id,title,media,image_url\na,vase,media\\a.jpg,x\nb,lamp,/srv/b.jpg,y\n")
    said = "\n".join(init(str(tmp_path), str(tmp_path / "mine.yaml")))
    assert r"2 of 2 media that were tried do not open (missing, such as media\a.jpg: there is no such file)" in said
    assert "columns image_url" in said  # there are media
    assert "max_degraded_share" not in (tmp_path / "mine.yaml").read_text()


def test_what_becomes_of_further_columns_of_the_log_is_told(tmp_path: Path) -> None:
    items = "".join(f"{n},vase,{n}\n" for n in range(8))
    (tmp_path / "items.csv").write_text(f"item_id,title,row\n{items}1.2E+12,lamp,8\n")
    events = [
        f"{n % 6}{'.0' * (n // 6 % 2)},{n % 7},2026-01-{1 + n % 28:02},{n % 3},9{n % 9},home,{n}\n" for n in range(99)
    ]
    names = "user_id,item_id,timestamp,hour,session_id,page,row"
    (tmp_path / "interactions.csv").write_text(names + "\n" + "".join(events) + "Total,99\n")
    said = "\n".join(init(str(tmp_path), str(tmp_path / "mine.yaml")))
    assert (
        "further columns of the log: hour, row (become context features); session_id (look like ids, not read); "
        "page (no numbers, not read)\n"
    ) in said
    assert "the log's row differs in every event, as ids do: remove it if it measures nothing" in said
    assert "the log's hour" not in said
    assert "items.csv has ids such as '1.2E+12' that lost digits in a spreadsheet: export item_id" in said
    assert " 99 events, 6 users" in said
    assert "1 lines of" in said  # the row with the total
    assert "line 101 has another number of fields" in said
