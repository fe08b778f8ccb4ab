"""Which users and which tasks a step draws."""

from __future__ import annotations

import pytest
import torch

from models.common.jagged import Jagged
from models.common.settings import FitConfig
from models.recommenders import build
from models.recommenders.build import ShuffledUsers, task_odds
from models.recommenders.settings import LanguageModelSettings
from storage.errors import UserError

ALL = ("sids_to_sid", "sids_to_title", "title_to_sid", "sid_to_title")


def sequences(count: int) -> Jagged:
    """Of lengths 1 to 9, drawn."""
    lengths = torch.randint(1, 10, (count,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Jagged(torch.zeros(int(offsets[-1]), dtype=torch.int64), offsets)


@pytest.mark.parametrize(("count", "batch"), [(1000, 16), (1000, 7), (5, 16), (321, 16)])
def test_every_user_comes_once_per_epoch_beside_alike_ones(count: int, batch: int) -> None:
    drawn = ShuffledUsers(sequences(count), batch, seed=1)
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
    whole = ShuffledUsers(sequences(100), 8, seed=1)
    rows = [whole.rows(step).tolist() for step in range(30)]
    for step in (29, 3, 17):
        assert ShuffledUsers(sequences(100), 8, seed=1).rows(step).tolist() == rows[step]
        assert whole.rows(step).tolist() == rows[step]
    assert [ShuffledUsers(sequences(100), 8, seed=2).rows(step).tolist() for step in range(30)] != rows


@pytest.mark.parametrize(("users", "sizes"), [(25, [8, 8, 9]), (27, [8, 8, 8, 3]), (3, [3]), (16, [8, 8])])
def test_a_step_is_shared_out_among_the_workers(users: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One user of 25 would stand alone, and every worker has to have something."""
    monkeypatch.setattr(build, "rank_and_size", lambda: (0, 3))
    drawn, epoch = ShuffledUsers(sequences(users), 8, seed=1), []
    for step in range(drawn.per_epoch):
        parts = []
        for rank in range(3):
            monkeypatch.setattr(build, "rank_and_size", lambda rank=rank: (rank, 3))
            parts.append(drawn.rows(step).tolist())
        assert all(parts)
        epoch.append([user for part in parts for user in part])
    assert sorted(map(len, epoch)) == sorted(sizes)
    assert sorted(user for step in epoch for user in step) == list(range(users))


def test_fewer_users_than_workers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "rank_and_size", lambda: (0, 3))
    with pytest.raises(UserError, match=r"lower stages\.generate\.workers"):
        ShuffledUsers(sequences(2), 8, seed=1)


def settings_of(*tasks: str, schedule: str = "content_first", **more: float) -> LanguageModelSettings:
    return LanguageModelSettings(tasks=tasks, schedule=schedule, fit=FitConfig(steps=100), **more)


def shares(settings: LanguageModelSettings, step: int) -> list[float]:
    odds = torch.tensor(task_odds(settings, step), dtype=torch.float64)
    return (odds / odds.sum()).tolist()


def test_content_first_takes_content_then_recommending_then_all() -> None:
    settings, every = settings_of(*ALL, main_share=0.7), pytest.approx([0.7, 0.1, 0.1, 0.1])
    for step in (0, 24):
        assert shares(settings, step) == [0, 0, 0.5, 0.5]
    for step in (25, 49):
        assert shares(settings, step) == pytest.approx([0.7, 0.3, 0, 0])
    for step in (50, 99):
        assert shares(settings, step) == every
    assert shares(settings_of(*ALL, schedule="joint", main_share=0.7), 0) == every
    assert shares(settings_of(*ALL[1:], ALL[0], schedule="joint"), 0) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert shares(settings_of("sids_to_sid"), 0) == [1]  # there is nothing about content to begin with
    assert shares(LanguageModelSettings(), 0) == [1]
