"""Fits that go on from an earlier one: what is taken over, and what begins anew."""

from __future__ import annotations

import numpy as np
import torch

from models.generation.vocabulary import Vocabulary
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized, quantize
from models.recommenders.sasrec import SasRec, SasRecConfig
from models.recommenders.warm import go_on, take_over, take_over_tokens, wide_enough

CONFIG = SasRecConfig(dim=8, layers=1, inner=16, length=4)


def test_items_keep_their_vectors_wherever_they_have_moved_to() -> None:
    torch.manual_seed(0)
    earlier = SasRec(CONFIG, torch.tensor([3, 0, 2, 1]))
    rows, counts = torch.tensor([2, -1, 0, 1, 3, -1]), torch.tensor([4, 1, 1, 2, 0, 0])
    torch.manual_seed(1)
    fresh = SasRec(CONFIG, counts)
    torch.manual_seed(1)
    model = SasRec(CONFIG, counts)
    assert take_over(model, earlier, rows, counts)
    assert torch.equal(model.item[[0, 2]], earlier.item[[2, 0]])
    assert torch.equal(model.item[[1, 3]], fresh.item[[1, 3]])  # new, and never chosen before
    assert not model.item[[4, 5]].any()  # no longer chosen, and never
    for name, value in model.named_parameters():
        if name != "item":
            assert torch.equal(value, dict(earlier.named_parameters())[name])


def test_a_model_of_another_shape_begins_anew() -> None:
    earlier = SasRec(CONFIG, torch.ones(3, dtype=torch.int64))
    model = SasRec(CONFIG.model_copy(update={"layers": 2}), torch.ones(3, dtype=torch.int64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not take_over(model, earlier, torch.arange(3), torch.ones(3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def vectors(rows: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(rows, 3)) @ random.normal(size=(3, 12))).astype(np.float32)


def test_codes_stay_and_new_items_stand_among_those_that_are_like_them() -> None:
    content = vectors(400)
    whole = quantize(content, dim=8, codes=4, codewords=16, seed=0)
    earlier = Quantized(whole.codes[:300], whole.codewords)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    rows = torch.where(order < 300, order, -1)
    found = go_on(earlier, rows, content[order.numpy()])
    assert torch.equal(found.codewords, whole.codewords)
    assert torch.equal(found.codes[rows >= 0], whole.codes[order[rows >= 0]])
    alike = (found.codes == whole.codes[order])[rows < 0].float().mean()
    assert alike > 0.5  # a sixteenth by chance
    every = torch.arange(300)
    assert torch.equal(go_on(earlier, every, content[:300]).codes, earlier.codes)


def test_product_codes_go_on_with_their_own_vectors() -> None:
    quantized = quantize(vectors(60), dim=8, codes=4, codewords=4, seed=0)
    config = ProductCodesConfig(dim=8, layers=1, inner=16, length=4, residual=0.1)
    earlier = ProductCodes(config, Quantized(quantized.codes[:50], quantized.codewords))
    torch.nn.init.normal_(earlier.residual)
    rows = torch.cat([torch.full((10,), -1), torch.arange(50)])
    codes = Quantized(quantized.codes[torch.arange(60).roll(10)], quantized.codewords)
    model = ProductCodes(config, codes)
    assert take_over(model, earlier, rows, torch.ones(60))
    assert torch.equal(model.codeword, earlier.codeword)
    assert torch.equal(model.residual[10:], earlier.residual)
    assert not model.residual[:10].any()


def test_only_suffixes_may_become_more() -> None:
    vocabulary = Vocabulary.sequence_only((4, 4, 3), suffixes=True)
    wider = wide_enough(vocabulary, (4, 4, 5), suffixes=True)
    assert wider is not None
    assert wider.sizes == (4, 4, 5)
    assert [wider.start(level) for level in range(3)] == [vocabulary.start(level) for level in range(3)]
    assert wide_enough(vocabulary, (4, 4, 2), suffixes=True) == vocabulary
    assert wide_enough(vocabulary, (5, 4, 3), suffixes=True) is None
    assert wide_enough(vocabulary, (4, 4), suffixes=False) is None


def test_more_tokens_stand_behind_those_that_were_there() -> None:
    earlier, model = torch.nn.Embedding(5, 3), torch.nn.Embedding(7, 3)
    rest = model.weight[5:].clone()
    assert take_over_tokens(model, earlier)
    assert torch.equal(model.weight, torch.cat([earlier.weight, rest]))
    assert not take_over_tokens(torch.nn.Embedding(4, 3), earlier)
    assert not take_over_tokens(torch.nn.Embedding(5, 4), earlier)
