"""The next-item models of a run: what they are made of, and what a definition may not say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.common.jagged import Jagged
from models.recommenders.product_quantizer import Digits
from models.recommenders.settings import Course, ParallelSettings, SasRecSettings, SequentialSettings
from operators.columns import matrix_column
from operators.log.split import SplitLeaveLast
from storage import files
from storage.artifacts import load_model
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir
from workflows.stages.generate import recommenders
from workflows.stages.generate.recommenders import Shuffled, task_odds

ALL = ("sids_to_sid", "sids_to_title", "title_to_sid", "sid_to_title")
ITEMS, USERS, EVENTS = 40, 50, 8
SPLIT = SplitLeaveLast(kind="leave_last")
COURSE = {"steps": 60, "batch_size": 16, "validate_every": 20, "learning_rate": 0.01, "warmup": 5, "precision": "fp32"}
SASREC = {"model": {"dim": 16, "inner": 32, "length": 8}, "course": COURSE}
PARALLEL = {**SASREC, "digits": 4, "codewords": 16, "width": 4}
SEQUENTIAL = {
    "backbone": {"name": "tiny", "layers": 1, "dim": 16, "heads": 2, "mlp": 32},
    "tasks": ["sids_to_sid", "title_to_sid"],
    "text_tokens": 300,
    "held_out": 0.25,
    "history": 8,
    "beams": 20,
    "course": COURSE,
}


def write_run(root: Path) -> RunDir:
    """A run up to quantize, in which every user goes from item to item by the same chain."""
    run, random = RunDir(str(root)), np.random.default_rng(0)
    ids = [f"item {n}" for n in range(ITEMS)]
    titles = [None if n % 10 == 3 else f"Thing of kind {n % 4}" for n in range(ITEMS)]
    captions = [None if n % 10 == 4 else f"a picture of {n}" for n in range(ITEMS)]
    run.write_table(pa.table({"item_id": ids, "title": titles, "caption": captions}), "items")
    vectors = matrix_column(random.normal(size=(ITEMS, 6)).astype(np.float32))
    run.write_table(pa.table({"item_id": ids, "embedding": vectors}), "embeddings")
    codes = np.stack([np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 5, np.arange(ITEMS) // 20], axis=1)
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(codes)}), "sids")
    run.write_json({"codebook_sizes": [4, 5]}, "models", "quantizer", "config.json")
    user, step = np.divmod(np.arange(USERS * EVENTS), EVENTS)
    log = pa.table(
        {
            "user_id": [f"user {n}" for n in user],
            "item_id": [ids[n] for n in (7 * user + step) % ITEMS],
            "timestamp": pa.array(step * 1_000_000 + user, pa.timestamp("us", tz="UTC")),
        }
    )
    run.write_table(log.take(random.permutation(log.num_rows)), "catalog", "interactions")
    return run


def read(run: RunDir) -> recommenders.Data:
    return recommenders.read_data(run, SPLIT, history=8, repeats=True)


def row_of(data: recommenders.Data) -> dict[str, int]:
    return {name: row for row, name in enumerate(data.item_ids.to_pylist())}


def rows(lists: Jagged) -> list[list[int]]:
    return [part.tolist() for part in lists.values.split(lists.offsets.diff().tolist())]


def test_sequences_and_queries_are_in_rows_of_the_hash_order(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data = read(run)
    ids = run.read_table("embeddings")["item_id"].to_pylist()
    assert data.item_ids.to_pylist() == [ids[at] for at in hash_order(ids)]
    row = row_of(data)
    chains = [[row[f"item {(7 * user + step) % ITEMS}"] for step in range(EVENTS)] for user in range(USERS)]
    assert sorted(rows(data.sequences)) == sorted(chain[:-2] for chain in chains)
    for asked, end in ((data.valid, -2), (data.test, -1)):
        found = [
            [*history, target] for history, target in zip(rows(asked.histories), asked.target.tolist(), strict=True)
        ]
        assert sorted(found) == sorted(chain[: EVENTS + end + 1] for chain in chains)


def test_a_log_without_a_sequence_is_explained(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    log = run.read_table("catalog", "interactions")
    last = pa.compute.greater_equal(pa.compute.second(log["timestamp"]), EVENTS - 3)
    run.write_table(log.filter(last), "catalog", "interactions")
    with pytest.raises(UserError, match="give a longer one"):
        read(run)


def test_digits_say_how_items_look_and_who_chose_them(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    ids, settings = recommenders.item_ids(run), ParallelSettings.model_validate(PARALLEL)
    found = {}
    for weight in (0.0, 1.0, 1.0):
        changed = settings.model_copy(update={"collaborative": weight})
        recommenders.write_digits(run, changed, ids, SPLIT, seed=3)
        _, tensors = load_model(run.uri("models", "generator", "digits"), recommenders.DIGITS)
        digits = Digits(**tensors)
        assert digits.codes.shape == (ITEMS, 4)
        assert digits.codewords.shape == (4, 16, 4)
        if weight in found:
            assert torch.equal(found[weight].codes, digits.codes)  # the same again
        found[weight] = digits
    assert not torch.equal(found[0.0].codes, found[1.0].codes)
    with pytest.raises(UserError, match=r"lower stages\.generate\.parallel\.codewords to 32 or less"):
        recommenders.write_digits(run, settings.model_copy(update={"codewords": 64}), ids, SPLIT, seed=3)


def test_a_subject_begins_the_same_and_draws_windows_of_its_sequences(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), SasRecSettings.model_validate(SASREC)
    subjects = [recommenders.next_item_subject(settings, run, data, seed=1) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one.learner.parameters() for one in subjects), strict=True))
    chains = {tuple(row) for row in rows(data.sequences)}
    for step in range(5):
        (windows,), (again,) = (one.draw(step) for one in subjects)
        assert torch.equal(windows, again)
        assert {tuple(row) for row in windows.tolist()} <= chains


def test_the_corpus_says_what_the_run_says_and_holds_some_items_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), SequentialSettings.model_validate(SEQUENTIAL)
    vocabulary = recommenders.make_vocabulary(settings, run, data.item_ids)
    corpus, again = (recommenders.make_corpus(settings, run, data, vocabulary, seed=1) for _ in range(2))
    assert vocabulary.sizes == (4, 5, 3)
    assert torch.equal(corpus.held_out, again.held_out)
    assert int(corpus.held_out.sum()) == ITEMS // 4
    titles, captions = rows(corpus.titles), rows(corpus.captions)
    for name, row in row_of(data).items():
        n = int(name.removeprefix("item "))
        assert corpus.paths[row].tolist() == [n % 4, n // 4 % 5, 1 + n // 20]
        assert vocabulary.decode(titles[row]).strip() == ("" if n % 10 == 3 else f"Thing of kind {n % 4}")
        assert vocabulary.decode(captions[row]).strip() == ("" if n % 10 == 4 else f"a picture of {n}")
    bare = settings.model_copy(update={"tasks": ()})
    vocabulary = recommenders.make_vocabulary(bare, run, data.item_ids)
    assert vocabulary.text is None
    assert not recommenders.make_corpus(bare, run, data, vocabulary, seed=1).held_out.any()


def test_an_item_without_a_semantic_id_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.write_table(run.read_table("sids").slice(3), "sids")
    with pytest.raises(UserError, match=r"3 items are missing in sids\.$"):
        recommenders.sid_paths(run, recommenders.item_ids(run))


def test_a_sequential_generator_recommends_as_it_did_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), SequentialSettings.model_validate(SEQUENTIAL)
    subject = recommenders.sequential_subject(settings, run, data, seed=1)
    recommender = subject.recommender(subject.learner.eval())
    assert subject.losses(subject.learner).keys() == {task.name for task in settings.tasks}
    uri = run.uri("models", "generator", "sequential")
    with pytest.raises(UserError, match="There is no "):
        recommenders.load_sequential(uri)
    recommenders.save_sequential(
        run, uri, settings, subject.learner, subject.learner.state_dict(), recommenders.item_ids(run)
    )
    read_settings, loaded = recommenders.load_sequential(uri)
    assert read_settings == settings
    wanted, found = (one.recommend(data.test.histories, k=5) for one in (recommender, loaded))
    assert torch.equal(found.items, wanted.items)
    torch.testing.assert_close(found.scores, wanted.scores)
    files.remove(files.join(uri, "settings.json"))
    with pytest.raises(UserError, match="run the stage generate again"):
        recommenders.load_sequential(uri)


def sequences(count: int) -> Jagged:
    """Of lengths 1 to 9, drawn."""
    lengths = torch.randint(1, 10, (count,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Jagged(torch.zeros(int(offsets[-1]), dtype=torch.int64), offsets)


@pytest.mark.parametrize(("count", "batch"), [(1000, 16), (1000, 7), (5, 16), (321, 16)])
def test_every_user_comes_once_per_epoch_beside_alike_ones(count: int, batch: int) -> None:
    drawn = Shuffled(sequences(count), batch, seed=1)
    assert drawn.per_epoch == -(-count // batch)
    epochs = [[drawn.rows(epoch * drawn.per_epoch + step) for step in range(drawn.per_epoch)] for epoch in range(2)]
    for rows in epochs:
        assert torch.cat(rows).sort().values.tolist() == list(range(count))
        assert max(map(len, rows)) <= batch
    assert count < batch or [rows.tolist() for rows in epochs[0]] != [rows.tolist() for rows in epochs[1]]
    lengths = sequences(count).offsets.diff()
    if count == 1000:
        spread = [float(lengths[rows].float().std()) for rows in epochs[0] if len(rows) > 1]
        assert sum(spread) / len(spread) < 0.5 * float(lengths.float().std())


def test_steps_depend_on_the_seed_and_on_nothing_that_came_before() -> None:
    whole = Shuffled(sequences(100), 8, seed=1)
    rows = [whole.rows(step).tolist() for step in range(30)]
    for step in (29, 3, 17):
        assert Shuffled(sequences(100), 8, seed=1).rows(step).tolist() == rows[step]
        assert whole.rows(step).tolist() == rows[step]
    assert [Shuffled(sequences(100), 8, seed=2).rows(step).tolist() for step in range(30)] != rows


@pytest.mark.parametrize(("users", "sizes"), [(25, [8, 8, 9]), (27, [8, 8, 8, 3]), (3, [3]), (16, [8, 8])])
def test_a_step_is_shared_out_among_the_workers(users: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One user of 25 would stand alone, and every worker has to have something."""
    monkeypatch.setattr(recommenders, "world", lambda: (0, 3))
    drawn, epoch = Shuffled(sequences(users), 8, seed=1), []
    for step in range(drawn.per_epoch):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(recommenders, "world", lambda rank=rank: (rank, 3))
            parts.append(drawn.rows(step).tolist())
        assert all(parts)
        epoch.append([user for part in parts for user in part])
    assert sorted(map(len, epoch)) == sorted(sizes)
    assert sorted(user for step in epoch for user in step) == list(range(users))


def test_fewer_users_than_workers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommenders, "world", lambda: (0, 3))
    with pytest.raises(UserError, match=r"lower stages\.generate\.workers"):
        Shuffled(sequences(2), 8, seed=1)


def staged(*tasks: str, schedule: str = "staged") -> SequentialSettings:
    return SequentialSettings(tasks=tasks, schedule=schedule, course=Course(steps=100))


def test_settings_hold_tasks_and_not_where_they_were_read(tmp_path: Path) -> None:
    (own := tmp_path / "own.yaml").write_text("name: own\nprompt: 'Shown: {title}?'\ntarget: sid\n")
    settings = SequentialSettings(tasks=["sids_to_sid", str(own)])
    own.write_text("name: own\nprompt: 'Another: {title}?'\ntarget: sid\n")
    other = SequentialSettings(tasks=["sids_to_sid", str(own)])
    assert settings.identity() != other.identity()
    own.unlink()
    assert SequentialSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert [task.name for task in settings.learned] == ["sids_to_sid", "own"]


def test_content_alone_does_not_use_up_the_patience(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for schedule, at in (("staged", 30), ("joint", 0)):
        settings = SequentialSettings.model_validate({**SEQUENTIAL, "schedule": schedule})
        assert settings.course.steps == 60
        assert recommenders.sequential_subject(settings, run, read(run), seed=1).patience_from == at


def test_a_staged_schedule_takes_content_then_recommending_then_all() -> None:
    settings = staged(*ALL)
    assert [task_odds(settings, step) for step in (0, 24)] == [[0, 0, 1, 1]] * 2
    assert [task_odds(settings, step) for step in (25, 49)] == [[1, 1, 0, 0]] * 2
    assert [task_odds(settings, step) for step in (50, 99)] == [None] * 2
    assert task_odds(staged(*ALL, schedule="joint"), 0) is None
    assert task_odds(staged("sids_to_sid"), 0) is None  # there is nothing about content to begin with


def test_the_first_task_that_recommends_by_semantic_ids_is_the_main_one() -> None:
    assert staged("title_to_sid", "sids_to_sid").main.name == "sids_to_sid"
    assert SequentialSettings().main.every_position


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ("title_to_sid", "titles_to_sid")}, "name sids_to_sid among them"),
        ({"schedule": "staged"}, "set schedule to joint"),
        ({"backbone": {"name": "smollm2"}}, "name tasks, or take tiny"),
    ],
)
def test_settings_of_the_sequential_generator_that_do_not_fit(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SequentialSettings.model_validate(settings)


def test_settings_of_the_parallel_generator_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="must be a power of two"):
        ParallelSettings(codewords=100)
    for digits, even in ((24, 16), (200, 128), (3, 2)):
        with pytest.raises(ValueError, match=f"write digits: {even}$|write digits: {even} "):
            ParallelSettings(digits=digits)
