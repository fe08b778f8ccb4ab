from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranking.architectures import AUXILIARY_WEIGHT
from models.ranking.config import Dcnv2, Dlrm, RankerConfig, RankMixer, Table
from models.ranking.ranker import (
    Ranker,
    RankerInputs,
    TrainingTask,
    load_ranker,
    merged,
    moments,
    save_ranker,
    with_positions,
)
from storage.errors import UserError

ROWS, HISTORY = 50, 3
PLAIN = {
    "user": Table(rows=ROWS, features=("user",)),
    "item": Table(rows=ROWS, features=("item", "history_item")),
    "caption": Table(rows=ROWS, features=("caption", "history_caption"), pooling="sum"),
}
HASHED = {**PLAIN, "caption": Table(rows=ROWS, features=("caption", "history_caption"), hashes=2, importance=20)}
CONFIG = RankerConfig(tables=PLAIN, dense=("age", "rate"), content_dim=3, architecture=Dlrm(hidden=(8,)))
LARGE = RankMixer(tokens=4, dim=8, layers=3, block="large", inter_residual=2, auxiliary=True)
CONFIGS = {
    "plain": CONFIG,
    "hashed": CONFIG.model_copy(update={"tables": HASHED}),
    "attention": CONFIG.model_copy(update={"history": HISTORY}),
    "long": CONFIG.model_copy(update={"history": HISTORY, "long": 2}),
    "long bags": CONFIG.model_copy(update={"long": 2}),
    "both": CONFIG.model_copy(update={"tables": HASHED, "history": HISTORY, "architecture": Dcnv2(hidden=(8,))}),
    "mixer": CONFIG.model_copy(update={"architecture": LARGE}),
    "ids alone": RankerConfig(tables=PLAIN, architecture=Dlrm(hidden=(8,))),
}


def inputs(config: RankerConfig, rows: int, seed: int = 0) -> RankerInputs:
    random = torch.Generator().manual_seed(seed)
    made: dict[bool, KeyedJaggedTensor | None] = {}
    for weighted in (False, True):
        tables = [table for table in with_positions(config).values() if table.weighted is weighted]
        names = [(name, table.hashes) for table in tables for name in table.features]
        if not names:
            made[weighted] = None
            continue
        lengths = torch.cat([torch.randint(1, 4, (rows,), generator=random) * count for _, count in names])
        values = torch.randint(0, ROWS, (int(lengths.sum()),), generator=random)
        weights = torch.randint(0, 40, (len(values),), generator=random).float() if weighted else None
        made[weighted] = KeyedJaggedTensor([name for name, _ in names], values, weights, lengths.int())
    draws = torch.randn(4, rows, 3, generator=random)
    return RankerInputs(
        sparse=made[False],
        weighted=made[True],
        dense=draws[0, :, : len(config.dense)],
        label=(draws[3, :, 0] > 0).float(),
        rows=torch.tensor(float(rows)),
        content=draws[1] if config.content_dim else None,
        history_content=draws[2] if config.content_dim else None,
        history_length=torch.randint(0, HISTORY + 1, (rows,), generator=random) if config.history else None,
        long_length=torch.randint(0, 3, (rows,), generator=random) if config.history and config.long else None,
    )


def ranker(config: RankerConfig = CONFIG) -> Ranker:
    torch.manual_seed(0)
    made = Ranker(config)
    made.embeddings.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1)
    if config.content_dim:
        made.set_statistics(dense=moments(torch.randn(100, 2) * 5 + 3), content=moments(torch.randn(100, 3)), rate=0.2)
    return made.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_artifact_scores_as_its_module_did(tmp_path, name: str) -> None:
    config = CONFIGS[name]
    made = ranker(config)
    save_ranker(str(tmp_path), config, made.state_dict())
    loaded = load_ranker(str(tmp_path))
    assert loaded.config == config
    assert not loaded.training
    torch.testing.assert_close(loaded(inputs(config, 7)), made(inputs(config, 7)))


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_smaller_tables_score_nearly_the_same_and_take_less_room(tmp_path, name: str, dtype: str) -> None:
    config, made = CONFIGS[name], ranker(CONFIGS[name])
    sizes = []
    for kept in ("fp32", dtype):
        save_ranker(str(tmp_path / kept), config, made.state_dict(), table_dtype=kept)
        sizes.append((tmp_path / kept / "model.safetensors").stat().st_size)
    tables = sum(table.rows for table in config.tables.values()) * config.embedding_dim * 4
    assert sizes[0] - sizes[1] > 0.3 * tables
    loaded, batch = load_ranker(str(tmp_path / dtype)), inputs(config, 50)
    difference = (loaded(batch) - made(batch)).abs().max() / made(batch).std()
    assert 0 < difference < {"fp16": 0.005, "int8": 0.05}[dtype]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_scores_alike_alone_and_in_a_batch(name: str) -> None:
    config = CONFIGS[name]
    made, batch = ranker(config), inputs(config, 5)
    whole = made(batch)
    assert whole.shape == (1, 5)
    for row in range(5):
        alone = replace(batch, sparse=only(batch.sparse, row), weighted=only(batch.weighted, row))
        for part in ("dense", "label", "content", "history_content", "history_length", "long_length"):
            value = getattr(batch, part)
            setattr(alone, part, None if value is None else value[row : row + 1])
        torch.testing.assert_close(made(alone), whole[:, row : row + 1])


def only(jagged: KeyedJaggedTensor | None, row: int) -> KeyedJaggedTensor | None:
    if jagged is None:
        return None
    parts = [jagged[key] for key in jagged.keys()]  # noqa: SIM118
    at = [slice(int(part.offsets()[row]), int(part.offsets()[row + 1])) for part in parts]
    weights = jagged.weights_or_none()
    return KeyedJaggedTensor(
        jagged.keys(),
        torch.cat([part.values()[inside] for part, inside in zip(parts, at, strict=True)]),
        None if weights is None else torch.cat([part.weights()[i] for part, i in zip(parts, at, strict=True)]),
        torch.tensor([inside.stop - inside.start for inside in at]).int(),
    )


def test_the_unknown_counts_as_the_training_mean() -> None:
    made, batch = ranker(), inputs(CONFIG, 4)
    unknown, mean = inputs(CONFIG, 4), inputs(CONFIG, 4)
    unknown.dense[:, 0], mean.dense[:, 0] = torch.nan, made.dense_mean[0]
    unknown.history_content[:], mean.history_content[:] = torch.nan, made.content_mean
    torch.testing.assert_close(made(unknown), made(mean))
    assert not torch.allclose(made(unknown), made(batch))


def test_statistics_leave_out_what_is_missing() -> None:
    made = ranker()
    dense = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [torch.inf, torch.nan]])
    made.set_statistics(dense=moments(dense), content=moments(torch.zeros(4, 3)), rate=0.5)
    assert made.dense_mean.tolist() == [2, 0]
    assert made.dense_std[0] == pytest.approx(1)
    assert (made.content_std > 0).all()


def test_moments_of_parts_are_those_of_all_rows() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1000
    values[::7, 1] = torch.nan
    values[:, 2] = torch.inf
    for cuts in ([50], [10, 40], [0, 1, 49], [25, 0, 25]):
        found = reduce(merged, [moments(part) for part in values.split(cuts)])
        torch.testing.assert_close(found, moments(values), rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_cross_entropy_and_reaches_every_parameter(name: str) -> None:
    config = CONFIGS[name]
    made = ranker(config).train()
    batch = inputs(config, 64)
    loss, (alone, logits) = TrainingTask(made)(batch)
    every = made(batch)
    torch.testing.assert_close(logits, every[0].detach())
    p = every.sigmoid()
    expected = -(batch.label * p.log() + (1 - batch.label) * (1 - p).log()).mean(1)
    torch.testing.assert_close(alone, expected[0].detach())
    torch.testing.assert_close(loss, expected[0] + AUXILIARY_WEIGHT * expected[1:].sum())
    assert (len(every) > 1) is (name == "mixer")
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


def test_shares_of_a_step_add_up_to_its_mean_loss() -> None:
    task, batch = TrainingTask(ranker()), inputs(CONFIG, 6)
    whole = task(batch)[0]
    parts = [replace(batch, rows=torch.tensor(6 / 2)) for _ in range(2)]
    torch.testing.assert_close(sum(task(part)[0] for part in parts) / 4, whole)


def test_target_attention_sees_no_position_beyond_the_history() -> None:
    config = CONFIGS["attention"]
    made, batch, other = ranker(config), inputs(config, 6), inputs(config, 6)
    for key in (f"history_item.{HISTORY - 1}", f"history_caption.{HISTORY - 1}"):
        other.sparse[key].values()[:] = 1  # views of the batch's own values
    short = batch.history_length < HISTORY
    assert short.any()
    assert not short.all()
    same = torch.isclose(made(batch), made(other))[0]
    assert same[short].all()
    assert not same[~short].all()


def test_histories_take_positions_of_their_own() -> None:
    features = {name: with_positions(CONFIGS[name])["item"].features for name in ("plain", "long", "long bags")}
    assert features == {
        "plain": ("item", "history_item"),
        "long": ("item", *(f"history_item.{n}" for n in range(HISTORY)), "long_item.0", "long_item.1"),
        "long bags": ("item", "history_item", "long_item"),
    }


def test_attention_needs_a_history() -> None:
    with pytest.raises(ValueError, match="history feature"):
        RankerConfig(tables={"item": Table(rows=9, features=("item",))}, history=3)


@pytest.mark.parametrize("damage", ["no file", "other tables", "foreign key"])
def test_what_is_no_ranker_is_the_users_to_mend(tmp_path, damage: str) -> None:
    made = ranker()
    if damage == "other tables":
        save_ranker(str(tmp_path), CONFIGS["ids alone"], made.state_dict())
    elif damage == "foreign key":
        save_ranker(str(tmp_path), CONFIG, {**made.state_dict(), "wings": torch.zeros(2)})
    with pytest.raises(
        UserError, match="There is no ranker" if damage == "no file" else "is damaged or of another version"
    ):
        load_ranker(str(tmp_path))
