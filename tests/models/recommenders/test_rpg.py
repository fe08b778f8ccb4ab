"""RPG, against its definition by loops."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from models.common.jagged import Jagged
from models.recommenders import rpg
from models.recommenders.artifacts import load
from models.recommenders.rpg import Head, Rpg, RpgConfig
from storage.errors import UserError

ITEMS, CODES, CODEWORDS, DIM = 40, 4, 8, 16
SIZE = {"dim": DIM, "heads": 2, "inner": 32, "length": 5}


def drawn() -> torch.Tensor:
    return torch.randint(CODEWORDS, (ITEMS, CODES), generator=torch.Generator().manual_seed(2))


def lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


def begun(**settings) -> Rpg:
    torch.manual_seed(0)
    return Rpg(RpgConfig(**{**SIZE, **settings}), drawn(), CODEWORDS)


def make(**settings) -> Rpg:
    """A model whose weights are far from the small ones it begins with."""
    model = begun(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def log_probability(model: Rpg, state: torch.Tensor, place: int, code: int) -> float:
    """Of one code, by its definition."""
    linear = model.heads[place].linear
    made = linear.weight.double() @ state + linear.bias.double()
    made = state + made * made.sigmoid()
    cosines = [float(made @ word) / float(made.norm() * word.norm()) for word in model.codeword[place].double()]
    logits = torch.tensor(cosines, dtype=torch.float64) / model.temperature
    return float(logits[code] - logits.logsumexp(0))


def test_a_score_is_the_sum_of_the_log_probabilities_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    model, hidden = make(temperature=0.2).requires_grad_(False), torch.randn(3, DIM)
    wanted = torch.tensor(
        [
            [sum(log_probability(model, state, *pair) for pair in enumerate(row)) for row in drawn().tolist()]
            for state in hidden.double()
        ]
    )
    for block in (64, 2):
        monkeypatch.setattr(rpg, "USERS", block)
        torch.testing.assert_close(model.scores(hidden), wanted, atol=1e-4, rtol=1e-4)
    found = model.recommend(lists([[1, 2], []]), k=3, banned=lists([[5], []]), allowed=torch.arange(ITEMS) % 2 > 0)
    assert not (found.items % 2 == 0).any()
    assert 5 not in found.items[0].tolist()
    assert model.recommend(lists([]), k=3, banned=lists([])).items.shape == (0, 3)


def test_the_loss_is_the_mean_of_the_cross_entropies_of_the_codes() -> None:
    model, hidden, target = make(), torch.randn(5, DIM), torch.tensor([0, 3, 3, 39, 7])
    wanted = -model.scores(hidden)[torch.arange(5), target].mean() / CODES
    torch.testing.assert_close(model.mean_loss(hidden, target), wanted)


def test_the_mean_of_the_codes_vectors_is_read() -> None:
    model, items = make(), torch.tensor([7, 0, 39])
    wanted = [sum(model.codeword[place, code] for place, code in enumerate(row)) / CODES for row in drawn()[items]]
    torch.testing.assert_close(model.inputs(items), torch.stack(wanted))


def test_heads_begin_as_the_identity_and_learn() -> None:
    head, hidden = Head(DIM), torch.randn(5, DIM)
    assert torch.equal(head(hidden), hidden)
    head(hidden).square().sum().backward()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.any()


def test_blocks_drop_nothing_of_what_they_add() -> None:
    assert begun().encoder.blocks[0].block_share == 0
    assert begun().encoder.blocks[0].share == begun().encoder.share == 0.5
    assert begun(block_dropout=None).encoder.blocks[0].block_share == 0.5


def test_a_batch_without_items_costs_nothing_and_has_all_gradients() -> None:
    model = make().train()
    loss = model.loss(torch.full((2, 3), ITEMS))
    loss.backward()
    assert loss == 0
    assert all(part.grad is not None and not part.grad.any() for part in model.parameters())


def test_an_artifact_recommends_as_what_was_trained_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    model = make()
    model.save(str(tmp_path), model.state_dict())
    found, wanted = (one.recommend(lists([[1, 2], [], [7]]), k=6) for one in (load(str(tmp_path)), model))
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.scores, wanted.scores)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"config": {"dim": 32}}))
    with pytest.raises(UserError, match=r"recommender at .* is damaged or of another version"):
        load(str(tmp_path))


def test_what_follows_by_codes_is_learned_and_a_new_item_is_known_by_its_codes() -> None:
    torch.manual_seed(0)
    codes = torch.stack([torch.arange(ITEMS) % 8, torch.arange(ITEMS) // 8], dim=1)  # all pairs of 8 and 5
    config = RpgConfig(**{**SIZE, "dropout": 0.0, "temperature": 0.1})
    model = Rpg(config, torch.cat([codes, codes[:1]]), CODEWORDS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    successor = (torch.arange(ITEMS) // 8 + 1) % 5 * 8 + (torch.arange(ITEMS) + 1) % 8  # by code: one further
    windows = torch.stack([torch.arange(ITEMS), successor], dim=1)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = model.loss(windows)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    nothing_left = (math.log(8) + math.log(5)) / 4  # half of the items are first ones, which nothing tells
    assert losses[-1] < 1.1 * nothing_left < 0.5 * losses[0]
    found = model.eval().recommend(Jagged(torch.arange(ITEMS), torch.arange(ITEMS + 1)), k=2)
    assert (found.items[:, 0] == successor).float().mean() > 0.9
    before = successor.argsort()[0]
    assert found.items[before].tolist() == [0, ITEMS]  # nobody has chosen the second one
    assert found.scores[before, 0] == found.scores[before, 1]
