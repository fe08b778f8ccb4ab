"""SASRec, and what it shares with product codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.common.jagged import Jagged
from models.common.seeds import generator
from models.recommenders import catalogue_loss, next_item
from models.recommenders.artifacts import load
from models.recommenders.encoder import Encoder
from models.recommenders.next_item import EncoderConfig, NextItemModel
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized
from models.recommenders.sasrec import SasRec, SasRecConfig
from models.recommenders.sprint import SprintConfig
from storage.errors import UserError

ITEMS = 30
SIZE = {"dim": 16, "inner": 32, "length": 6, "dropout": 0.3}
ALL_ALIKE = torch.ones(ITEMS, dtype=torch.int64)
HISTORIES = [[3, 7, 1], [], [0, 0, 5, 6, 7, 8, 9, 2], [29], [1, 2, 3, 4, 5, 6]]


def lists(rows: list[list[int]]) -> Jagged:
    values = [value for row in rows for value in row]
    return Jagged(torch.tensor(values, dtype=torch.int64), torch.tensor([0, *map(len, rows)]).cumsum(0))


def make(kind: str, **settings) -> NextItemModel:
    """A model whose weights are far from the small ones it begins with, so that everything has its effect."""
    torch.manual_seed(0)
    if kind == "sasrec":
        model: NextItemModel = SasRec(SasRecConfig(**{**SIZE, **settings}), ALL_ALIKE)
    else:
        quantized = Quantized(torch.randint(8, (ITEMS, 4)), torch.randn(4, 8, 4))
        model = ProductCodes(ProductCodesConfig(**{**SIZE, **settings}), quantized)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(params=[("sasrec", {}), ("sasrec", {"logits": "dot"}), ("product_codes", {})], ids=str)
def model(request: pytest.FixtureRequest) -> NextItemModel:
    kind, settings = request.param
    return make(kind, **settings)


def naive_scores(model: NextItemModel, history: list[int]) -> torch.Tensor:
    """Of one history alone, without any padding."""
    read = torch.tensor([history[-model.config.length :]], dtype=torch.int64)
    vectors = torch.cat([model.start[None], model.inputs(read[0])]) if history else model.start[None]
    states, _ = model.encoder(vectors[None], torch.ones(1, len(vectors), dtype=torch.bool))
    return model.scores(states[0, -1:])[0]


def naive_best(scores: torch.Tensor, k: int, out: set[int]) -> list[int]:
    left = sorted(set(range(len(scores))) - out, key=lambda item: (-float(scores[item]), item))
    return left[:k] + [-1] * (k - len(left))


def test_a_later_vector_changes_no_earlier_state() -> None:
    torch.manual_seed(0)
    sizes = {"dim": 8, "layers": 3, "heads": 2, "inner": 16, "share": 0.5, "block_share": 0.5, "length": 9}
    encoder = Encoder(**sizes, sprint=SprintConfig()).eval()
    items, real = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    states, _ = encoder(items, real)
    for at in range(7):
        other = items.clone()
        other[:, at] = torch.randn(2, 8)
        changed = (encoder(other, real)[0] != states).any(dim=2)
        assert not changed[:, :at].any()
        assert changed[:, at:].all()
    torch.testing.assert_close(encoder(items[:, :4], real[:, :4])[0], states[:, :4])


def test_dropout_is_for_training_alone(model: NextItemModel) -> None:
    windows = torch.tensor([[1, 2, 3], [4, 5, ITEMS]])
    assert model.loss(windows) == model.loss(windows)
    model.train()
    assert model.loss(windows) != model.loss(windows)


def test_all_histories_at_once_are_answered_as_each_alone(
    model: NextItemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    banned = [[], [4, 5], [7, 7, 1], list(range(ITEMS)), []]
    allowed = torch.rand(ITEMS, generator=torch.Generator().manual_seed(1)) < 0.8
    hidden = set((~allowed).nonzero()[:, 0].tolist())
    assert hidden
    for block in (512, 2):
        monkeypatch.setattr(next_item, "USERS", block)
        plain = model.recommend(lists(HISTORIES), k=7)
        found = model.recommend(lists(HISTORIES), k=ITEMS + 2, banned=lists(banned), allowed=allowed)
        assert plain.items.shape == (5, 7)
        assert found.scores.dtype == torch.float32
        for row, history in enumerate(HISTORIES):
            scores = naive_scores(model, history).detach()
            assert plain.items[row].tolist() == naive_best(scores, 7, set())
            right = naive_best(scores, ITEMS + 2, hidden | set(banned[row]))
            assert found.items[row].tolist() == right
            values = [float(scores[item]) if item >= 0 else -torch.inf for item in right]
            torch.testing.assert_close(found.scores[row], torch.tensor(values), atol=1e-5, rtol=1e-5)


def test_only_the_last_items_are_read(model: NextItemModel) -> None:
    long, short, other = [9, 8, 7, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [2, 2, 3, 4, 5, 6]
    found = model.recommend(lists([long, short, other]), k=ITEMS)
    torch.testing.assert_close(found.scores[0], found.scores[1])
    assert not torch.allclose(found.scores[1], found.scores[2], atol=1e-3)


def test_nobody_gets_nothing(model: NextItemModel) -> None:
    found = model.recommend(lists([]), k=3, banned=lists([]))
    assert found.items.shape == found.scores.shape == (0, 3)


def test_windows_are_the_ends_of_sequences_with_one_more_to_predict(model: NextItemModel) -> None:
    found = model.windows(lists([[1], [1, 2, 3, 4, 5, 6, 7, 8], [3, 4]]), torch.tensor([1, 2]))
    assert found.tolist() == [[2, 3, 4, 5, 6, 7, 8], [3, 4, *[ITEMS] * 5]]
    assert int(model.weight(found)) == 9


def test_a_thinned_window_closes_up_in_its_order(model: NextItemModel) -> None:
    model.config = model.config.model_copy(update={"item_dropout": 0.4})
    sequences = [list(range(1, 7)), [3, 4], [7], [2, 5, 8]] * 500
    windows = model.windows(lists(sequences), torch.arange(len(sequences)))
    found = model.thinned(windows, generator(1))
    assert found.shape[1] <= windows.shape[1]
    rows = [[item for item in row if item < ITEMS] for row in found.tolist()]
    assert [row + [ITEMS] * (found.shape[1] - len(row)) for row in rows] == found.tolist()  # padding stays behind
    assert all(len(row) == len(set(row)) and sorted(row) == row for row in rows)
    assert all(set(row) <= set(whole) for row, whole in zip(rows, sequences, strict=True))
    assert {len(row) for row in rows[1::4]} == {2}
    assert {len(row) for row in rows[2::4]} == {1}
    assert {len(row) for row in rows[0::4]} == {2, 3, 4, 5, 6}
    kept = sum(map(len, rows[0::4])) / (6 * 500)
    assert 0.58 < kept < 0.68  # 0.6, and whole where fewer than two were left
    assert torch.equal(model.thinned(windows, generator(1)), found)
    assert not torch.equal(model.thinned(windows, generator(2)), found)


def test_the_loss_is_the_mean_over_all_items_of_each_history(
    model: NextItemModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [[3, 1, 2, 3], [5], [8, 9], [1, 2, 3, 4, 5, 6, 7]]
    losses = []
    for sequence in sequences:
        for at, item in enumerate(sequence):
            scores = naive_scores(model, sequence[:at])
            losses.append(-scores.log_softmax(0)[item])  # both kinds: of all items
    windows = model.windows(lists(sequences), torch.arange(4))
    for block in (256, 3):
        monkeypatch.setattr(catalogue_loss, "POSITIONS", block)
        torch.testing.assert_close(model.loss(windows), torch.stack(losses).mean())
    assert int(model.weight(windows)) == len(losses)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sasrec", {}),
        ("sasrec", {"negatives": 5}),
        ("product_codes", {}),
        ("product_codes", {"negatives": 5}),
    ],
)
def test_a_batch_without_items_costs_nothing_and_has_all_gradients(kind: str, settings: dict[str, str]) -> None:
    model = make(kind, **settings).train()
    loss = model.loss(torch.full((2, 3), ITEMS))
    loss.backward()
    assert loss == 0
    assert all(part.grad is not None and not part.grad.any() for part in model.parameters())


@pytest.mark.parametrize("logits", ["cosine", "dot"])
@pytest.mark.parametrize("draws", [{}, {"negatives": 15}, {"negatives": 15, "beta": 0.5}], ids=str)
def test_a_chain_of_items_is_learned(logits: str, draws: dict[str, Any]) -> None:
    """Every item has one successor, whatever came before it."""
    torch.manual_seed(0)
    successor = torch.randperm(ITEMS).roll(1)
    rows = [torch.arange(ITEMS).repeat(2)]
    for _ in range(6):
        rows.append(successor[rows[-1]])
    chains = torch.stack(rows, dim=1)
    counts = chains.flatten().bincount(minlength=ITEMS)
    model = SasRec(SasRecConfig(**{**SIZE, "dropout": 0.0, "logits": logits, **draws}), counts)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(chains).backward()
        optimizer.step()
    model.eval()
    starts = torch.arange(ITEMS)
    asked = torch.stack([starts, successor[starts], successor[successor[starts]]], dim=1)
    for length in (1, 2, 3):
        found = model.recommend(lists(asked[:, :length].tolist()), k=1)
        assert torch.equal(found.items[:, 0], successor[asked[:, length - 1]])


def test_a_score_is_the_cosine_times_the_scale() -> None:
    model, hidden = make("sasrec"), torch.randn(5, 16)
    states, items = hidden.double().numpy(), model.item.detach().double().numpy()
    norms = np.linalg.norm(states, axis=1)[:, None] * np.linalg.norm(items, axis=1)
    wanted = model.log_scale.detach().exp().item() * (states @ items.T) / norms
    np.testing.assert_allclose(model.scores(hidden).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    plain = make("sasrec", logits="dot")
    np.testing.assert_allclose(
        plain.scores(hidden).detach().numpy(), states @ plain.item.detach().double().numpy().T, rtol=1e-4, atol=1e-5
    )


def test_the_scale_begins_within_its_bound_stays_there_and_is_saved(tmp_path: Path) -> None:
    model = SasRec(SasRecConfig(**SIZE), ALL_ALIKE)
    assert float(model.log_scale.exp()) == pytest.approx(1 / 0.07)
    for value in (2.0, 9.0):
        model.log_scale.data.fill_(value)
        model.limit()
        assert float(model.log_scale) == pytest.approx(min(value, math.log(100)))
    model.save(str(tmp_path), model.state_dict())
    assert torch.equal(load(str(tmp_path)).log_scale, model.log_scale)
    assert "log_scale" not in make("sasrec", logits="dot").state_dict()


def test_items_that_nobody_chose_are_not_learned_nor_recommended(tmp_path: Path) -> None:
    counts = ALL_ALIKE.clone()
    counts[[4, 17]] = 0
    for settings in ({}, {"logits": "dot"}, {"negatives": 9}):
        torch.manual_seed(0)
        model = SasRec(SasRecConfig(**{**SIZE, **settings}), counts)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(torch.tensor([[3, 7, 1], [0, 2, ITEMS]])).backward()
            optimizer.step()
        assert model.item.any(1).nonzero()[:, 0].tolist() == counts.nonzero()[:, 0].tolist()
        model.save(str(tmp_path), model.state_dict())
        found = load(str(tmp_path)).recommend(lists([[3, 4], []]), k=ITEMS)
        assert found.items[:, -2:].tolist() == [[-1, -1]] * 2
        assert not {4, 17} & set(found.items.flatten().tolist())
        assert found.scores[:, :-2].isfinite().all()


def test_an_artifact_from_before_the_cosines_is_refused(tmp_path: Path) -> None:
    model = make("sasrec", logits="dot")
    model.save(str(tmp_path), model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("logits", "negatives", "beta", "log_q"):
        del config["config"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"recommender at .* is damaged or of another version"):
        load(str(tmp_path))


def test_an_artifact_recommends_as_what_was_trained(model: NextItemModel, tmp_path: Path) -> None:
    model.save(str(tmp_path), model.state_dict())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = load(str(tmp_path))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    wanted, found = (one.recommend(lists(HISTORIES), k=ITEMS) for one in (model, loaded))
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.scores, wanted.scores)
    windows = model.windows(lists(HISTORIES[2:]), torch.arange(3))
    assert loaded.loss(windows) == model.loss(windows)


@pytest.mark.parametrize(
    "damage",
    [
        {"config": {"dim": 7, "heads": 2}},
        {"config": {"dim": 16, "hidden": 3}},
        {"items": ITEMS + 1, "codewords": [4, 9]},
        {"items": "many", "codewords": [4]},
        {"config": None},
    ],
)
def test_a_damaged_artifact_is_named(model: NextItemModel, tmp_path: Path, damage: dict) -> None:
    with pytest.raises(UserError, match="There is no recommender"):
        load(str(tmp_path))
    model.save(str(tmp_path), model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: damage[key] for key in damage if key in config}))
    with pytest.raises(UserError, match=r"recommender at .* is damaged or of another version"):
        load(str(tmp_path))


def test_missing_weights_are_named(model: NextItemModel, tmp_path: Path) -> None:
    for name in ("start", "codes" if isinstance(model, ProductCodes) else "item"):
        model.save(str(tmp_path), {key: value for key, value in model.state_dict().items() if key != name})
        with pytest.raises(UserError, match=r"recommender at .* is damaged or of another version"):
            load(str(tmp_path))


def test_heads_that_do_not_share_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="write dim: 20"):
        EncoderConfig(dim=18, heads=4)
    assert EncoderConfig(dim=20, heads=4).dim == 20


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "next-item model"}')
    with pytest.raises(UserError, match="holds a next-item model, not a recommender"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a foreign file, not a recommender"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_a_penalty_takes_popular_items_out_of_lists_and_nothing_else_changes(kind: str) -> None:
    counts = torch.randint(0, 1000, (ITEMS,), generator=torch.Generator().manual_seed(0))
    model, wanted = make(kind), make(kind)
    popularity = []
    for penalty in (0.0, 0.1, 0.3, 1.0, 100.0):
        model.penalise(penalty, counts)
        scores = torch.stack([naive_scores(wanted, history) for history in HISTORIES]).detach()
        scores -= penalty * torch.tensor([math.log(max(count, 1)) for count in counts.tolist()])
        found = model.recommend(lists(HISTORIES), k=8)
        right = [naive_best(row, 8, set()) for row in scores]
        assert found.items.tolist() == right
        torch.testing.assert_close(model.log_probs(lists(HISTORIES)), scores.log_softmax(-1), atol=1e-4, rtol=1e-4)
        popularity.append(float(counts[found.items].clamp_min(1).float().log().mean()))
    assert popularity == sorted(popularity, reverse=True)
    assert popularity[0] > popularity[-1]
    windows = torch.tensor([[1, 2, 3], [4, 5, ITEMS]])
    assert model.loss(windows) == wanted.loss(windows)


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
def test_a_penalty_of_the_settings_is_part_of_the_artifact(kind: str, tmp_path: Path) -> None:
    counts = torch.arange(ITEMS)
    if kind == "sasrec":
        model: NextItemModel = SasRec(SasRecConfig(**SIZE, popularity_penalty=0.5), counts)
    else:
        quantized = Quantized(torch.randint(8, (ITEMS, 4)), torch.randn(4, 8, 4))
        model = ProductCodes(ProductCodesConfig(**SIZE, popularity_penalty=0.5, exact_items=1), quantized, counts)
    assert model.penalty is not None
    assert model.penalty.tolist() == pytest.approx([0.5 * math.log(max(count, 1)) for count in range(ITEMS)])
    model.eval().save(str(tmp_path), model.state_dict())
    found, wanted = (each.recommend(lists(HISTORIES), k=9) for each in (load(str(tmp_path)), model))
    assert found.exact is None  # no search: the index knows of no penalty
    assert torch.equal(found.items, wanted.items)
    assert "penalty" not in make(kind).state_dict()
