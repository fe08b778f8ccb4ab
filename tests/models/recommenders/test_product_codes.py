from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.recommenders import product_codes
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


def lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


def make(spread: float = 0.5, **settings) -> ProductCodes:
    torch.manual_seed(0)
    model = ProductCodes(ProductCodesConfig(dim=DIM, inner=32, length=5, **settings), drawn())
    with torch.no_grad():
        model.codeword.add_(torch.randn_like(model.codeword) * spread)
    return model.eval()


def test_a_score_is_the_sum_of_the_log_probabilities_of_an_items_codes() -> None:
    model, hidden = make().requires_grad_(False), torch.randn(3, DIM)
    scores = model.scores(hidden)
    assert scores.shape == (3, ITEMS)
    for user, item in itertools.product(range(3), range(ITEMS)):
        total = 0.0
        for place, code in enumerate(drawn().codes[item].tolist()):
            logits = [float(hidden[user] @ model.codeword[place, other]) for other in range(CODEWORDS)]
            total += logits[code] - float(torch.tensor(logits).logsumexp(0))
        assert float(scores[user, item]) == pytest.approx(total, abs=1e-4)


def test_the_order_is_that_of_products_with_the_vectors_that_are_read() -> None:
    model, hidden = make(), torch.randn(5, DIM)
    vectors = model.vectors(torch.arange(ITEMS))
    by_hand = torch.stack([sum(model.codeword[d, c] for d, c in enumerate(row)) for row in drawn().codes.tolist()])
    torch.testing.assert_close(vectors, by_hand)
    torch.testing.assert_close(model.every_vector(), by_hand)
    scores, products = model.scores(hidden), hidden @ by_hand.T
    torch.testing.assert_close(scores.log_softmax(1), products.log_softmax(1), atol=1e-4, rtol=1e-4)
    distinct = [row for row in range(ITEMS) if (drawn().codes == drawn().codes[row]).all(1).sum() == 1]
    order = scores[:, distinct].argsort(dim=1, descending=True)
    assert torch.equal(order, products[:, distinct].argsort(dim=1, descending=True))


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


def test_negatives_are_items_and_not_codes() -> None:
    with pytest.raises(ValueError, match="leave negatives out, or write catalogue"):
        ProductCodesConfig(objective="codes", negatives=100)


@pytest.mark.parametrize("objective", ["catalogue", "codes"])
def test_the_loss_is_the_cross_entropy_over_the_catalogue_or_of_each_code(objective: str) -> None:
    model, hidden = make(objective=objective), torch.randn(6, DIM)
    target = torch.tensor([0, 3, 3, 39, 7, 20])
    if objective == "catalogue":
        products = hidden @ model.vectors(torch.arange(ITEMS)).T
        wanted = functional.cross_entropy(products, target)
        scores = model.scores(hidden).log_softmax(1)[torch.arange(6), target]  # how likely it is among the items
        torch.testing.assert_close(-scores.mean(), wanted)
    else:
        wanted = -model.scores(hidden)[torch.arange(6), target].mean() / CODES
        logits = model.logits(hidden)
        parts = [functional.cross_entropy(logits[:, place], drawn().codes[target, place]) for place in range(CODES)]
        torch.testing.assert_close(torch.stack(parts).mean(), wanted)
        wanted = torch.stack(parts).mean()
    loss = model.mean_loss(hidden, target)
    torch.testing.assert_close(loss, wanted)
    gradients = (torch.autograd.grad(one, model.codeword)[0] for one in (loss, wanted))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_large_catalogue_is_searched_in_an_index_of_its_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so few items the search looks at all, so that it finds what scoring all finds."""
    made = list[int]()

    def index(vectors: torch.Tensor) -> Any:
        made.append(len(made))
        return InnerProductIndex(vectors)

    monkeypatch.setattr(product_codes, "InnerProductIndex", index)
    exact, searched = make(), make(exact_items=ITEMS - 1)
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
