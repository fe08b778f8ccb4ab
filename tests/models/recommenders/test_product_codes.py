from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.recommenders import product_codes
from models.recommenders.artifacts import load
from models.recommenders.inner_product import InnerProductIndex
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig, _Sums
from models.recommenders.product_quantizer import Quantized
from storage.errors import UserError

ITEMS, CODES, CODEWORDS, DIM = 40, 4, 8, 16


def drawn() -> Quantized:
    """Codes of which some are nobody's, the last ones among them."""
    random = torch.Generator().manual_seed(2)
    codes = torch.randint(CODEWORDS - 1, (ITEMS, CODES), generator=random)
    codes[:, 1] = codes[:, 1].clamp_min(2)
    return Quantized(codes, torch.randn(CODES, CODEWORDS, DIM // CODES, generator=random))


def embeddings() -> torch.Tensor:
    return torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(3))


def lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


def make(spread: float = 0.5, **settings) -> ProductCodes:
    torch.manual_seed(0)
    config = ProductCodesConfig(dim=DIM, inner=32, length=5, **settings)
    model = ProductCodes(config, drawn(), content=embeddings() if config.content else None)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        model.codeword.add_(torch.randn(model.codeword.shape, generator=random) * spread)
        if config.residual is not None:
            model.residual.add_(torch.randn(model.residual.shape, generator=random) * spread)
    return model.eval()


VARIANTS = [{}, {"logits": "cosine"}, {"residual": 0.5}, {"logits": "cosine", "residual": 0.5, "content": True}]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_score_is_the_product_or_cosine_with_the_sum_of_an_items_codes(settings: dict[str, Any]) -> None:
    model, hidden = make(**settings).requires_grad_(False), torch.randn(3, DIM)
    vectors = torch.stack([sum(model.codeword[d, c] for d, c in enumerate(row)) for row in drawn().codes.tolist()])
    if "residual" in settings:
        vectors += model.residual
    torch.testing.assert_close(model.vectors(torch.arange(ITEMS)), vectors)
    torch.testing.assert_close(model.every_vector(), vectors)
    wanted = hidden @ vectors.T
    if "logits" in settings:
        wanted *= model.log_scale.exp() / (hidden.norm(dim=1)[:, None] * vectors.norm(dim=1))
    for _ in range(2):  # the second time by what the first has kept
        torch.testing.assert_close(model.scores(hidden), wanted, atol=1e-4, rtol=1e-4)


def test_products_have_the_order_of_the_log_probabilities_of_the_codes() -> None:
    model, hidden = make().requires_grad_(False), torch.randn(3, DIM)
    log_probs = torch.einsum("bd,mcd->bmc", hidden, model.codeword).log_softmax(-1)
    wanted = torch.stack([log_probs[:, place, drawn().codes[:, place]] for place in range(CODES)]).sum(0)
    torch.testing.assert_close(model.scores(hidden).log_softmax(1), wanted.log_softmax(1), atol=1e-4, rtol=1e-4)


def test_what_is_kept_to_answer_is_of_the_weights_as_they_are() -> None:
    model, hidden = make(logits="cosine"), torch.randn(3, DIM)
    before = model.scores(hidden)
    model.train()
    with torch.no_grad():
        model.codeword.copy_(torch.randn_like(model.codeword))
    in_training, after = model.scores(hidden), model.eval().scores(hidden)
    assert not torch.allclose(before, after)
    assert torch.equal(in_training, after)


def test_the_encoder_reads_what_the_embeddings_say() -> None:
    model, plain, items = make(content=True), make(), torch.tensor([3, 3, 0, 39])
    read = model.inputs(items) - model.vectors(items)
    torch.testing.assert_close(read, embeddings()[items] @ model.reader.weight.T)
    assert read.abs().max() > 0.01
    assert torch.equal(plain.inputs(items), plain.vectors(items))
    assert torch.equal(model.every_vector(), plain.every_vector())  # compared is what was


def test_residuals_begin_at_nothing_and_are_left_out_for_a_share_of_the_items() -> None:
    torch.manual_seed(0)
    begun = ProductCodes(ProductCodesConfig(dim=DIM, residual=0.3), drawn())
    assert not begun.residual.any()
    model, every = make(residual=0.3), torch.arange(ITEMS)
    without = model.vectors(every) - model.residual
    left_out = []
    for _ in range(50):
        for found in (model.train().vectors(every), model.every_vector()):
            dropped = torch.isclose(found, without, atol=1e-6).all(1)
            torch.testing.assert_close(found[~dropped], (without + model.residual)[~dropped])
            left_out.append(dropped)
    share = torch.stack(left_out).float()
    assert float(share.mean()) == pytest.approx(0.3, abs=0.03)
    assert len(share.unique(dim=0)) == 100  # each is drawn by itself
    torch.testing.assert_close(model.eval().vectors(every), without + model.residual)


@pytest.mark.parametrize("draws", [{}, {"negatives": 5}], ids=str)
def test_items_without_an_event_have_no_residual(draws: dict[str, int]) -> None:
    counts = torch.ones(ITEMS, dtype=torch.int64)
    counts[[4, 17]] = 0
    torch.manual_seed(0)
    model = ProductCodes(
        ProductCodesConfig(dim=DIM, inner=32, length=5, residual=0.2, logits="cosine", **draws), drawn(), counts
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(torch.arange(18, 38).view(5, 4)).backward()
        optimizer.step()
    assert not model.residual[[4, 17]].any()
    assert model.residual[18:38].any(1).all()
    assert model.eval().recommend(lists([[20]]), k=ITEMS).items.sort().values[0].tolist() == list(range(ITEMS))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_an_artifact_recommends_as_what_was_trained(settings: dict[str, Any], tmp_path: Path) -> None:
    model = make(**settings)
    model.save(str(tmp_path), model.state_dict())
    found, wanted = (one.recommend(lists([[1, 2], [], [7]]), k=6) for one in (load(str(tmp_path)), model))
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.scores, wanted.scores)


@pytest.mark.parametrize("draws", [{}, {"negatives": 5}], ids=str)
def test_items_that_nobody_chose_are_not_learned_as_never_chosen(draws: dict[str, int]) -> None:
    chosen = torch.tensor([0, 3, 7, 20, 39])
    counts = torch.zeros(ITEMS, dtype=torch.int64).index_put((chosen,), torch.tensor([1, 5, 2, 1, 9]))
    torch.manual_seed(0)
    model = ProductCodes(ProductCodesConfig(dim=DIM, inner=32, length=5, **draws), drawn(), counts)
    hidden, target = torch.randn(4, DIM), torch.tensor([39, 3, 3, 0])
    products = hidden @ model.vectors(chosen).T
    wanted = functional.cross_entropy(products, torch.tensor([4, 1, 1, 0]))
    torch.testing.assert_close(model.mean_loss(hidden, target), wanted)
    assert model.scores(hidden).shape == (4, ITEMS)
    assert not any(name.startswith("catalogue_loss") for name in model.state_dict())


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_loss_is_the_cross_entropy_over_the_catalogue(settings: dict[str, Any]) -> None:
    model, hidden = make(**settings), torch.randn(6, DIM)
    target = torch.tensor([0, 3, 3, 39, 7, 20])
    loss = model.mean_loss(hidden, target)
    torch.testing.assert_close(loss, functional.cross_entropy(model.scores(hidden), target))
    if settings:
        return
    wanted = functional.cross_entropy(hidden @ model.vectors(torch.arange(ITEMS)).T, target)
    gradients = (torch.autograd.grad(one, model.codeword)[0] for one in (loss, wanted))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_large_catalogue_is_searched_in_an_index_of_its_vectors(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so few items the search looks at all, so that it finds what scoring all finds."""
    made = list[int]()

    def index(vectors: torch.Tensor) -> Any:
        made.append(len(made))
        return InnerProductIndex(vectors)

    monkeypatch.setattr(product_codes, "InnerProductIndex", index)
    exact, searched = make(**settings), make(exact_items=ITEMS - 1, **settings)
    histories, banned = lists([[1, 2], [], [7]]), lists([[], [3, 4, 5], [0]])
    allowed = torch.arange(ITEMS) % 5 > 0
    wanted = exact.recommend(histories, k=6, banned=banned, allowed=allowed)
    assert wanted.exact is None
    for _ in range(2):
        found = searched.recommend(histories, k=6, banned=banned, allowed=allowed)
        torch.testing.assert_close(found.scores, wanted.scores)
        assert torch.equal(found.items.sort().values, wanted.items.sort().values)
        assert found.exact is not None
        assert not found.exact.any()
    assert len(made) == 1
    searched.train()
    searched.eval().recommend(histories, k=6)
    assert len(made) == 2  # the vectors have changed since


def test_the_gradient_of_sums_is_that_of_an_embedding_bag() -> None:
    model = make()
    index = model.rows, model.members, model.starts
    table = model.codeword.detach().flatten(0, 1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda part: _Sums.apply(part, *index), (table,), fast_mode=True)
    weights = torch.randn(ITEMS, DIM, dtype=torch.float64)
    plain = functional.embedding_bag(model.rows, table, mode="sum")
    sums = _Sums.apply(table, *index)
    assert torch.equal(sums, plain)
    found, wanted = (torch.autograd.grad((one * weights).sum(), table)[0] for one in (sums, plain))
    torch.testing.assert_close(found, wanted)
    unused = functional.one_hot(drawn().codes, CODEWORDS).sum(0).flatten() == 0
    assert unused.any()
    assert not found[unused].any()


def test_it_begins_with_what_was_quantised() -> None:
    torch.manual_seed(0)
    codes, codewords = drawn()
    model = ProductCodes(ProductCodesConfig(dim=DIM), drawn())
    quantised = torch.cat([codewords[place, codes[:, place]] for place in range(CODES)], dim=1)
    assert functional.cosine_similarity(model.every_vector(), quantised).min() > 0.9
    own = torch.eye(CODES).repeat_interleave(DIM // CODES, 1)[:, None]  # each code's own dimensions
    begun, others = model.codeword * own, model.codeword * (1 - own)
    assert functional.cosine_similarity(begun.flatten(), (codewords.repeat(1, 1, CODES) * own).flatten(), 0) > 0.99
    assert 0 < others.square().mean() < 0.05 * begun.square().mean()
    nothing = ProductCodes(ProductCodesConfig(dim=DIM), Quantized(codes, torch.zeros_like(codewords)))
    assert nothing.codeword.isfinite().all()


def test_training_lifts_what_follows() -> None:
    torch.manual_seed(0)
    model = ProductCodes(ProductCodesConfig(dim=DIM, inner=32, length=5, dropout=0.0), drawn())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    windows = torch.arange(ITEMS).unfold(0, 4, 1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(windows)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    histories = Jagged(torch.arange(10), torch.arange(11))
    found = model.eval().recommend(histories, k=5).items
    assert (found == torch.arange(1, 11)[:, None]).any(1).float().mean() > 0.8


def test_codewords_of_other_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"of 16 dimensions: set model\.dim"):
        ProductCodes(ProductCodesConfig(dim=32), drawn())
