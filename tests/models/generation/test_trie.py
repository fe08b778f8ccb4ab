from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.generation.trie import Trie
from storage.errors import UserError

SIZES = (3, 4, 2)
catalogues = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, unique=True)


@given(catalogues)
def test_every_node_stands_for_its_prefix(found):
    trie = Trie.build(torch.tensor(found), SIZES)
    assert [found[item] for item in trie.items] == sorted(found)
    assert torch.equal(trie.ranks[trie.items], torch.arange(len(found)))
    prefixes = [()]
    for level in range(len(SIZES)):
        longer = []
        for node, prefix in enumerate(prefixes):
            below = range(trie.children[level][node], trie.children[level][node + 1])
            codes = trie.codes[level][below.start : below.stop].tolist()
            assert codes == sorted({path[level] for path in found if path[:level] == prefix})
            longer += [(*prefix, code) for code in codes]
        prefixes = longer
        for node, prefix in enumerate(prefixes):
            items = trie.items[trie.spans[level][node] : trie.spans[level][node + 1]].tolist()
            assert [found[item] for item in items] == sorted(path for path in found if path[: level + 1] == prefix)
    assert prefixes == sorted(found)


def test_the_order_of_the_catalogue_changes_names_alone():
    random = np.random.default_rng(0)
    paths = torch.from_numpy(np.unique(random.integers(0, 9, (300, 3)), axis=0))
    order = torch.from_numpy(random.permutation(len(paths)))
    trie, shuffled = Trie.build(paths, (9, 9, 9)), Trie.build(paths[order], (9, 9, 9))
    assert torch.equal(order[shuffled.items], trie.items)
    for name in ("codes", "children", "spans"):
        assert all(map(torch.equal, getattr(trie, name), getattr(shuffled, name)))


def test_items_with_one_path_are_refused():
    with pytest.raises(UserError, match=r"Rows 1 and 3 .* share one semantic ID"):
        Trie.build(torch.tensor([[0, 0], [1, 2], [1, 1], [1, 2]]), (2, 3))
