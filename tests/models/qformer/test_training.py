from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from models.qformer.model import CaptionModel
from models.qformer.settings import Phase, Recipe
from models.qformer.training import State, Trainer
from storage.errors import UserError
from tests.models.qformer.conftest import SMALL
from tests.models.qformer.planted import planted
from tests.models.workers import on_ranks

QUICK = Phase(steps=6, batch_size=8, learning_rate=3e-3, validate_every=3)
RECIPE = Recipe(align=QUICK, write=QUICK, texts=2)


def fresh(tokenizer: Tokenizer) -> CaptionModel:
    torch.manual_seed(0)
    return CaptionModel(SMALL, tokenizer)


def trained(tokenizer: Tokenizer, recipe: Recipe, state: State | None = None) -> tuple[CaptionModel, list[Any]]:
    model = fresh(tokenizer)
    reports: list[Any] = []
    data, _ = planted(model, 32)
    Trainer(model, data, recipe, seed=1, state=state).run(lambda metrics, take: reports.append((metrics, take())))
    return model, reports


@pytest.mark.parametrize("silent", [None, 3])
def test_captions_say_what_is_planted(tokenizer: Tokenizer, silent: int | None) -> None:
    """Also where every third text says nothing of the colour."""
    model = fresh(tokenizer)
    data, captions = planted(model, 160 if silent is None else 240, silent=silent)
    phases = {"align": Phase(steps=9, batch_size=32, learning_rate=3e-3)}
    phases |= {"write": Phase(steps=175, batch_size=16, learning_rate=1e-2, validate_every=25)}
    Trainer(model, data, Recipe(texts=2, label_smoothing=0.0, **phases), seed=1).run(lambda metrics, take: None)
    model.eval()
    held = data.valid.numpy()
    queries = model.see(torch.from_numpy(data.features[data.rows[data.valid].numpy()]))
    said = model.decoder.write(queries)
    assert sum(text == captions[row] for text, row in zip(said, held, strict=True)) >= 0.6 * len(held)  # of 12 captions
    near = model.text_vectors(model.encode([captions[row] for row in held])) @ model.picture_vectors(queries).T
    found = [captions[held[place]] for place in near.argmax(1).tolist()]
    assert sum(text == captions[row] for text, row in zip(found, held, strict=True)) >= 0.9 * len(held)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_killed_training_ends_where_an_undisturbed_one_does(tokenizer: Tokenizer, at: int) -> None:
    """In the middle of the first stage, at its end, and at the end of the second one."""
    whole, reports = trained(tokenizer, RECIPE)
    resumed, rest = trained(tokenizer, RECIPE, reports[at][1])
    assert [metrics["step"] for metrics, _ in rest] == [metrics["step"] for metrics, _ in reports[at + 1 :]]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_stage_without_steps_is_left_out(tokenizer: Tokenizer) -> None:
    _, reports = trained(tokenizer, RECIPE.model_copy(update={"align": Phase(steps=0)}))
    assert {metrics["stage"] for metrics, _ in reports} == {"write"}


def test_the_weights_with_the_least_held_out_loss_stay(tokenizer: Tokenizer) -> None:
    """A far too high rate makes it worse."""
    wild = Recipe(align=Phase(steps=0), write=Phase(steps=9, batch_size=8, learning_rate=0.3, validate_every=3))
    model, reports = trained(tokenizer, wild)
    losses = [sum(metrics["held_out"].values()) for metrics, _ in reports]
    best = reports[losses.index(min(losses))][1]
    for name, value in model.own_state().items():
        assert torch.equal(value, best[f"best.{name}"]), name


def test_a_loss_that_is_no_number_ends_it(tokenizer: Tokenizer) -> None:
    model = fresh(tokenizer)
    data, _ = planted(model, 32)
    data.features[:] = float("nan")
    with pytest.raises(UserError, match=r"lower align\.learning_rate"):
        Trainer(model, data, RECIPE, seed=1).run(lambda metrics, take: None)


def _on_rank(rank: int, content: str) -> list[torch.Tensor]:
    model, reports = trained(Tokenizer.from_str(content), RECIPE)
    return [*model.state_dict().values(), torch.tensor([metrics["loss"] for metrics, _ in reports])]


@pytest.mark.long
def test_workers_keep_the_same_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ((one, two),) = on_ranks(_on_rank, tmp_path, [(tokenizer.to_str(),)])
    alone, _ = trained(tokenizer, RECIPE)
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    assert not all(torch.equal(first, own) for first, own in zip(one, alone.state_dict().values(), strict=False))
