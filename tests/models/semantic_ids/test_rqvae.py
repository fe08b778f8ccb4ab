from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.semantic_ids.moving_codebooks import MovingCodebooks
from models.semantic_ids.quantizer import RQVAE, Architecture, Quantizer
from models.semantic_ids.rqkmeans import State
from models.semantic_ids.rqvae import Deal, Schedule, fit_rqvae, losses_of, reset_dead_codes, start
from models.semantic_ids.training_rows import Vectors, collect
from tests.models.semantic_ids.test_rqkmeans import embeddings, errors, vectors
from tests.models.workers import on_ranks

SHAPE = Architecture(RQVAE, 16, (16, 16, 16), 16, hidden_dims=(32,))
SHORT = Schedule(steps=20, batch_size=32)


def started(inputs: torch.Tensor) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(SHAPE)
    start(quantizer, inputs, np.arange(len(inputs), dtype=np.uint64), seed=0)
    return quantizer


def test_losses_and_gradients_are_those_of_the_formula() -> None:
    inputs = embeddings(40)
    quantizer, head = started(inputs), torch.nn.Identity()
    weight = quantizer.encoder.get_parameter("linear.weight")
    losses, codes, residuals = losses_of(quantizer, inputs, Schedule(), head, torch.empty(40, 0))

    latents = quantizer.encoder(inputs)
    words = [book[code] for book, code in zip(quantizer.codebooks, codes.T, strict=True)]
    rests = [latents, latents - words[0], latents - words[0] - words[1]]
    pull = sum((rest - word).square().sum() for rest, word in zip(rests, words, strict=True))
    assert torch.allclose(residuals, torch.stack(rests).detach(), atol=1e-5)
    assert torch.allclose(losses.quantization, pull, rtol=1e-5)
    expected = torch.autograd.grad(pull, weight, retain_graph=True)[0]
    assert torch.allclose(torch.autograd.grad(losses.quantization, weight, retain_graph=True)[0], expected, atol=1e-3)

    quantized = sum(words).detach().requires_grad_()
    error = (inputs - quantizer.decoder(quantized)).square().sum()
    assert torch.allclose(losses.reconstruction, error, rtol=1e-5)
    straight = torch.autograd.grad(error, quantized)[0]
    found = torch.autograd.grad(losses.reconstruction, weight)[0]
    assert torch.allclose(found, straight.T @ inputs, atol=1e-2)


def test_a_fit_starts_at_residual_k_means_in_the_principal_axes() -> None:
    data = embeddings(400)
    quantizer = fit_rqvae(vectors(data), SHAPE, Schedule(steps=1, learning_rate=1e-12), seed=0)
    inputs = quantizer.standardise(data)
    with torch.no_grad():
        assert torch.allclose(quantizer.decoder(quantizer.encoder(inputs)), inputs, atol=1e-4)  # a rotation and back
    assert errors(quantizer, data)[2] < 0.2


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_fit_uses_its_codebooks_and_loses_less_of_unseen_rows_than_where_it_starts(scale: float) -> None:
    data, history = embeddings(1_200, scale), []
    seen, unseen = data[:600], data[600:]
    schedule = Schedule(steps=600, batch_size=128, commitment=0.25)
    before = fit_rqvae(vectors(seen), SHAPE, Schedule(steps=1, learning_rate=1e-12), seed=0)
    after = fit_rqvae(vectors(seen), SHAPE, schedule, seed=0, report=lambda metrics, _: history.append(metrics))
    assert all(len(level.unique()) >= 15 for level in after.encode(data).T)
    assert errors(after, unseen)[2] < 0.99 * errors(before, unseen)[2]
    assert [point["step"] for point in history] == list(range(50, 601, 50))
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("latent", [4, 24])
def test_a_latent_may_be_narrower_or_wider_than_the_input(latent: int) -> None:
    data = embeddings(300)
    quantizer = fit_rqvae(vectors(data), replace(SHAPE, latent_dim=latent), Schedule(steps=60), seed=0)
    assert quantizer.codebooks[0].shape == (16, latent)
    assert errors(quantizer, data)[2] < 0.5


def test_one_seed_gives_one_result_whatever_the_order_and_another_another() -> None:
    data = embeddings(100)
    torch.manual_seed(1)
    first = fit_rqvae(vectors(data), SHAPE, SHORT, seed=3).state_dict()
    torch.manual_seed(2)  # the surroundings' generator does not matter
    second = fit_rqvae(vectors(data.flip(0)), SHAPE, SHORT, seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fit_rqvae(vectors(data), SHAPE, SHORT, seed=4).state_dict()
    assert not torch.equal(first["codebooks.0"], other["codebooks.0"])


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_tiny_catalogues_fit(rows: int) -> None:
    quantizer = fit_rqvae(vectors(embeddings(rows)), SHAPE, Schedule(steps=110, batch_size=4), seed=0)
    assert quantizer.encode(embeddings(rows)).shape == (rows, 3)
    assert all(torch.isfinite(tensor).all() for tensor in quantizer.state_dict().values())


def test_a_killed_fit_goes_on_to_the_same_end() -> None:
    data, schedule, states = vectors(embeddings(300)), Schedule(steps=250, batch_size=64), list[State]()

    def keep(metrics: dict[str, float], snapshot: object) -> None:
        states.append({name: tensor.clone() for name, tensor in snapshot().items()})  # type: ignore[operator]

    whole = fit_rqvae(data, SHAPE, schedule, seed=0, report=keep).state_dict()
    resumed = fit_rqvae(data, SHAPE, schedule, seed=0, state=states[2]).state_dict()
    assert int(states[2]["step"]) == 150
    assert all(torch.allclose(whole[name], resumed[name], atol=1e-6) for name in whole)


def test_alignment_draws_items_of_like_signals_together() -> None:
    data = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    side = (torch.arange(400) % 2).float()
    data[:, 15] = 0.2 * data[:, 15] + 0.6 * (side - 0.5)  # a trace that distances alone do not go by
    signals = torch.stack([side, 1 - side], dim=1)
    signals[:40] = torch.nan  # nothing is known of these

    def agreement(alignment: float) -> float:
        held = collect([(data.numpy(), signals.numpy())])
        schedule = Schedule(steps=300, batch_size=100, learning_rate=1e-2, alignment=alignment)
        codes = fit_rqvae(held, replace(SHAPE, codebook_sizes=(8,)), schedule, seed=0).encode(data)[:, 0]
        table = torch.zeros(8, 2).index_put_((codes[40:].long(), side[40:].long()), torch.ones(360), accumulate=True)
        return float(table.max(1).values.sum() / 360)

    assert agreement(100.0) > agreement(0.0) + 0.15


def test_dead_codes_move_to_residuals_and_live_ones_stay() -> None:
    inputs = embeddings(200)
    quantizer, keys = started(inputs), np.arange(200, dtype=np.uint64)
    with torch.no_grad():
        quantizer.codebooks[0][3:9] = 1e3  # out of reach
    moving = MovingCodebooks(SHAPE.codebook_sizes, 16)
    moving.start(quantizer.codebooks, torch.ones(48))
    before = [codebook.detach().clone() for codebook in quantizer.codebooks]
    with torch.no_grad():
        used = [level.unique() for level in quantizer.quantize(quantizer.encoder(inputs)).T]
    dead = sum(16 - len(level) for level in used)
    assert reset_dead_codes(quantizer, moving, inputs, keys, seed=0) == dead >= 6
    for codebook, old, alive in zip(quantizer.codebooks, before, used, strict=True):
        assert torch.equal(codebook[alive], old[alive])
    assert float(quantizer.codebooks[0].abs().max()) < 1e2
    moving.update(quantizer.codebooks, torch.zeros(48), torch.zeros(48, 16))
    assert float(quantizer.codebooks[0].abs().max()) < 1e2  # the averages have moved, too


def test_codewords_follow_the_mean_of_their_rows() -> None:
    moving, books = MovingCodebooks((2, 1), 3), torch.nn.ParameterList([torch.zeros(2, 3), torch.zeros(1, 3)])
    for book in books:
        book.requires_grad_(False)
    moving.start(books, torch.tensor([1.0, 1.0, 1.0]))
    codes, residuals = torch.tensor([[0, 0], [0, 0]]), torch.tensor([[[1.0] * 3, [3.0] * 3], [[5.0] * 3, [7.0] * 3]])
    for _ in range(1_000):
        moving.update(books, *moving.of_batch(codes, residuals))
    assert torch.allclose(books[0], torch.tensor([[2.0] * 3, [0.0] * 3]), atol=1e-2)  # the unused one stays
    assert torch.allclose(books[1], torch.full((1, 3), 6.0), atol=1e-2)


def test_every_epoch_deals_all_rows_once() -> None:
    deal = Deal(np.random.default_rng(0).integers(0, 2**64, 1_000, dtype=np.uint64), 100, seed=0)
    epochs = [[deal.rows_of(step) for step in range(start, start + 10)] for start in (0, 10)]
    for epoch in epochs:
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(1_000))
        assert all(60 < len(batch) < 140 for batch in epoch)
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(deal.rows_of(3), epochs[0][3])  # also on the way back


def fit_share(rank: int, values: torch.Tensor, bounds: list[int]) -> dict[str, torch.Tensor]:
    held: Vectors = vectors(values[bounds[rank] : bounds[rank + 1]])
    return dict(fit_rqvae(held, SHAPE, SHORT, seed=0).state_dict())


def test_two_workers_agree_with_one_however_the_rows_are_shared(tmp_path: Path) -> None:
    data = embeddings(101)
    alone = fit_rqvae(vectors(data), SHAPE, SHORT, seed=0).state_dict()
    for first, second in on_ranks(fit_share, tmp_path, [(data, [0, 30, 101]), (data, [0, 101, 101])]):
        for name, tensor in alone.items():
            assert torch.equal(first[name], second[name])
            assert torch.allclose(first[name], tensor, atol=1e-4), name
