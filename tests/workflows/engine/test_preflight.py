from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.errors import UserError
from workflows.distributed.pools import Node
from workflows.engine.definition import resolve
from workflows.engine.preflight import pools_shown, preflight
from workflows.init import init

FEW = {"codebook_sizes": [1, 1, 1]}
STAGES = {"ingest": {}, "interpret": {}, "project": {}, "quantize": FEW}
COLLABORATIVE = {**STAGES, "quantize": {"method": "rqvae+collaborative", **FEW}}


def check(place: Path, stages: dict, split: dict) -> None:
    raw = {"name": "w", "catalog": str(place / "catalog"), "split": split, "stages": stages}
    preflight(resolve(raw, source="w"), str(place / "run"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A catalogue whose timestamps only order the events of one user."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    (tmp_path / "catalog" / "catalog.json").write_text(json.dumps({"timestamps": "order"}))
    return tmp_path


@pytest.mark.parametrize("stages", [{**STAGES, "features": {}}, COLLABORATIVE])
def test_timestamps_that_only_order_do_not_split_by_time(place: Path, stages: dict) -> None:
    with pytest.raises(UserError, match=r"write split: \{kind: leave_last\} at the top of the definition"):
        check(place, stages, {"kind": "time"})
    check(place, stages, {"kind": "leave_last"})
    (place / "catalog" / "catalog.json").write_text(json.dumps({"timestamps": "real"}))
    (place / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1577934245\n")
    check(place, stages, {"kind": "time"})


def test_only_stages_that_read_the_split_need_a_log(place: Path) -> None:
    check(place, STAGES, {"kind": "time"})
    (place / "catalog" / "interactions.csv").unlink()
    check(place, STAGES, {"kind": "time"})
    for stages in ({**STAGES, "features": {}}, COLLABORATIVE):
        with pytest.raises(UserError, match="has no interactions table"):
            check(place, stages, {"kind": "leave_last"})


def test_more_codewords_than_items_are_told_before_anything_runs(place: Path) -> None:
    (place / "catalog" / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},vase\n" for n in range(24)))
    stages = {**STAGES, "generate": {"language_model": None}}
    with pytest.raises(UserError, match=r"lower stages\.generate\.product_codes\.codewords to 16 or less"):
        check(place, stages, {"kind": "leave_last"})
    stages["generate"] = {"product_codes": {"codewords": 16}}
    check(place, stages, {"kind": "leave_last"})
    (line,) = told(place, {**STAGES, "quantize": {"codebook_sizes": [16, 32]}})
    assert line.startswith("quantize: 24 items leave most of 32 codewords unused")
    assert line.endswith("write auto for stages.quantize.codebook_sizes")
    for sizes in ([16, 24], "auto"):
        assert told(place, {**STAGES, "quantize": {"codebook_sizes": sizes}}) == []


def test_a_definition_of_a_catalogue_without_a_log_is_told_which_stages_go(place: Path) -> None:
    (place / "catalog" / "interactions.csv").unlink()
    log_stages = {"features": {}, "rank": {}, "generate": {"language_model": None}, "evaluate": {}, "report": {}}
    with pytest.raises(UserError, match=r"features, rank, generate, evaluate read: delete them .* `tesserec init`"):
        check(place, {**STAGES, **log_stages}, {"kind": "leave_last"})
    with pytest.raises(UserError, match=r"set stages.quantize.method to rqvae"):
        check(place, COLLABORATIVE, {"kind": "leave_last"})


def told(place: Path, stages: dict) -> list[str]:
    lines: list[str] = []
    raw = {"name": "w", "catalog": str(place / "catalog"), "split": {"kind": "leave_last"}, "stages": stages}
    preflight(resolve(raw, source="w"), str(place / "run"), tell=lines.append)
    return lines


TEXTS = [
    ("item_id,title\na,vase\n", "caption", ["caption_to_sid", "caption_to_title"]),
    ("item_id,media\na,a.jpg\n", "title", ["sids_to_title", "titles_to_title", "titles_to_sid", "title_to_sid"]),
]


@pytest.mark.parametrize(("items", "lacking", "tasks"), TEXTS)
@pytest.mark.parametrize("where", ["generate", "ablate_tasks"])
def test_tasks_without_their_texts_are_left_out_of_all_and_errors_where_they_are_named(
    place: Path, items: str, lacking: str, tasks: list[str], where: str
) -> None:
    (place / "catalog" / "items.csv").write_text(items)

    def stages(tasks: object) -> dict:
        without = {"product_codes": None} if where == "generate" else {}
        return {**STAGES, where: {"language_model": {"tasks": tasks}, **without}}

    (line,) = told(place, stages("all"))
    assert line.startswith(f"{where}: left out, since no item has a {lacking}: ")
    assert set(tasks) <= set(line.rpartition(": ")[2].split(", "))
    named = rf"stages.{where}.language_model.tasks names {tasks[0]}, and no item has a {lacking}"
    with pytest.raises(UserError, match=named):
        told(place, stages(["sids_to_sid", tasks[0]]))


def test_without_titles_and_captions_no_task_is_left_to_ablate(place: Path) -> None:
    (place / "catalog" / "items.csv").write_text("item_id,description\na,A vase.\n")
    with pytest.raises(UserError, match="delete ablate_tasks"):
        told(place, {**STAGES, "ablate_tasks": {}})
    assert told(place, {**STAGES, "generate": {"language_model": {"tasks": []}, "product_codes": None}}) == []


def test_variants_without_their_inputs_are_left_out_by_default_and_errors_where_they_are_named(place: Path) -> None:
    stages = {**STAGES, "features": {}, "ablate_features": {}}
    (line,) = told(place, stages)
    assert "caption, caption+sid, image, null, random, shuffled" in line
    for variants, sentence in ((["id", "image"], "take image out"), (["id", "truth"], "take truth out")):
        with pytest.raises(UserError, match=sentence):
            told(place, {**stages, "ablate_features": {"variants": variants}})
    assert told(place, {**stages, "ablate_features": {"variants": ["id", "title"]}}) == []


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ("item_id,price\na,3\n", "1 of 1 items have no title, no description and no medium: give them one.$"),
        ("item_id,title\na,vase\nb,\nc,\n", "2 of 3 items have no title.*max_reject_share"),
        ("item_id,title\na,vase\na,lamp\n,chair\n", "2 of 3 items have no item_id, or that of another item"),
    ],
)
def test_too_many_items_without_anything_to_interpret_or_an_id_are_told(place: Path, items: str, sentence: str) -> None:
    (place / "catalog" / "items.csv").write_text(items)
    with pytest.raises(UserError, match=sentence):
        told(place, STAGES)


def test_ratings_need_a_setting_that_makes_labels_of_them(place: Path) -> None:
    log = place / "catalog" / "interactions.csv"
    log.write_text("user_id,item_id,timestamp,label\nu,a,1,1\nu,a,2,5\n")
    with pytest.raises(UserError, match=r"from 1 to 5: write stages.ingest.positive_from"):
        told(place, STAGES)
    assert told(place, {**STAGES, "ingest": {"positive_from": 4}}) == []
    with pytest.raises(UserError, match=r"stages.ingest.label is 'stars': the log has user_id"):
        told(place, {**STAGES, "ingest": {"label": "stars", "positive_from": 4}})
    with pytest.raises(UserError, match=r"No label of the log reaches .*positive_from, 9: the highest is 5"):
        told(place, {**STAGES, "ingest": {"positive_from": 9}})
    log.write_text("user_id,item_id,timestamp,rating\nu,a,1,1\nu,a,2,5\n")
    with pytest.raises(UserError, match=r"the log has no labels: name them by stages.ingest.label, such as rating"):
        told(place, {**STAGES, "ingest": {"positive_from": 4}})
    log.write_text("user_id,item_id,timestamp,Label\nu,a,1,1\nu,a,2,0\n")
    with pytest.raises(UserError, match=r"has a column 'Label': if it tells what was liked, rename it to label"):
        told(place, STAGES)
    log.write_text("user_id,item_id,timestamp,Label\nu,a,1,Sony\nu,a,2,EMI\n")
    assert told(place, STAGES) == []
    log.write_text("user_id,item_id,timestamp\nu,a\n")
    with pytest.raises(UserError, match=r"interactions.csv has no row that can be read \(line 2 .*\): write events"):
        told(place, STAGES)


def test_a_log_without_rows_is_told_before_anything_runs(place: Path) -> None:
    (place / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,rating\n")
    for ingest in ({}, {"label": "rating", "positive_from": 4}):
        with pytest.raises(UserError, match=r"interactions.csv has no rows: write events there, or remove the file"):
            told(place, {**STAGES, "ingest": ingest})
    with pytest.raises(UserError, match=r"has no rows: write events there"):
        init(str(place / "catalog"), str(place / "mine.yaml"))


@pytest.mark.parametrize(
    ("table", "row"),
    [("items", '{"item_id": ["a"], "title": "vase"}'), ("interactions", '{"user_id": {"n": 1}, "item_id": "a"}')],
)
def test_ids_of_another_type_are_told(place: Path, table: str, row: str) -> None:
    (place / "catalog" / f"{table}.csv").unlink()
    (place / "catalog" / f"{table}.jsonl").write_text(row.replace('"a"}', '"a", "timestamp": 1}'))
    for look in (lambda: told(place, STAGES), lambda: init(str(place / "catalog"), str(place / "mine.yaml"))):
        with pytest.raises(UserError, match=rf"{table}.jsonl has a column .* cannot be read .* text or whole numbers"):
            look()


def test_labels_of_another_type_are_told(place: Path) -> None:
    (place / "catalog" / "interactions.csv").unlink()
    log = '{"user_id": "u", "item_id": "a", "timestamp": 1, "label": [5]}'
    (place / "catalog" / "interactions.jsonl").write_text(log)
    with pytest.raises(UserError, match=r"no value in its column 'label' that can be read \(such as \[5\]\): write 1"):
        told(place, STAGES)


def test_what_runs_where_and_what_has_no_room_is_told(place: Path) -> None:
    raw = {"name": "w", "catalog": str(place / "catalog"), "stages": {**STAGES, "quantize": {**FEW, "workers": 4}}}
    definition = resolve(raw, source="w")
    lines = pools_shown(definition, [Node(6, 0)])
    assert lines[-1] == "  quantize: 4 workers of 1 CPUs"
    assert lines[0].startswith("  interpret: 4 actors of 1 CPUs")
    lines = pools_shown(definition, [Node(1, 0, "10.0.0.1"), Node(2.5, 0, "10.0.0.2")])
    assert lines[:2] == ["  10.0.0.1: 1 CPUs, 0 GPUs", "  10.0.0.2: 2.5 CPUs, 0 GPUs"]
    assert lines[-1] == "  quantize: 4 workers of 1 CPUs, room for 3 now"
