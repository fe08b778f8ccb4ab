from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.common.jagged import Jagged
from models.generation.packing import IGNORED, Batch, pack
from storage.errors import UserError

PAD = 7
Document = tuple[list[int], list[float]]  # tokens, weights

parts = st.lists(st.integers(1, 4), min_size=0, max_size=3)  # lengths of responses
shapes = st.lists(st.tuples(st.integers(1, 9), parts), max_size=12)  # of prompts and of what follows them


def made(shape: list[tuple[int, list[int]]]) -> list[Document]:
    """Documents of which no two tokens are the same."""
    found, token = [], 1000
    for prompt, responses in shape:
        weights = [0.0] * prompt + [1 / length for length in responses for _ in range(length)]
        found.append((list(range(token, token + len(weights))), weights))
        token += len(weights)
    return found


def as_lists(documents: list[Document]) -> Jagged:
    return Jagged(
        torch.tensor([token for tokens, _ in documents for token in tokens], dtype=torch.int64),
        torch.tensor([0, *(len(tokens) for tokens, _ in documents)]).cumsum(0),
        torch.tensor([weight for _, weights in documents for weight in weights]),
    )


def unpack(batch: Batch) -> list[Document]:
    found = []
    for row in zip(*(part.tolist() for part in batch), strict=True):
        for number in range(1, max(row[2]) + 1):
            inside = [at for at, document in enumerate(row[2]) if document == number]
            tokens, positions, _, targets, weights = ([part[at] for at in inside] for part in row)
            assert positions == list(range(len(inside)))
            assert targets[-1] == IGNORED
            for target, weight, following in zip(targets, weights, tokens[1:], strict=False):
                assert target == (following if weight else IGNORED)
            found.append((tokens, [0.0, *weights[:-1]]))
    return found


@settings(deadline=None, max_examples=80)
@given(shapes, st.integers(22, 40), st.integers(1, 4))
def test_every_document_is_there_once_and_whole(shape, tokens_per_row: int, rows: int) -> None:
    documents = made(shape)
    batches = pack(as_lists(documents), tokens_per_row=tokens_per_row, rows=rows, pad=PAD)
    found = sorted(document for batch in batches for document in unpack(batch))
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in documents]
    assert [weight for _, weights in found for weight in weights] == pytest.approx(
        [weight for _, weights in documents for weight in weights]
    )
    assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(sum(len(part) for _, part in shape))


@settings(deadline=None, max_examples=80)
@given(shapes, st.integers(22, 40), st.integers(1, 4))
def test_rows_are_filled_by_first_fit(shape, tokens_per_row: int, rows: int) -> None:
    batches = pack(as_lists(made(shape)), tokens_per_row=tokens_per_row, rows=rows, pad=PAD)
    assert all(len(batch.tokens) == rows for batch in batches[:-1])
    assert all(1 <= len(batch.tokens) <= rows for batch in batches)
    assert all(batch.tokens.shape[1] == int((batch.document > 0).sum(1).max()) <= tokens_per_row for batch in batches)
    filled = [int(row.sum()) for batch in batches for row in batch.document > 0]
    two_emptiest = sorted(filled)[:2]
    assert len(two_emptiest) < 2 or sum(two_emptiest) > tokens_per_row  # or the second would have joined the first


@settings(deadline=None, max_examples=40)
@given(shapes.filter(bool))
def test_nothing_attends_across_documents(shape) -> None:
    documents = made(shape)
    owner = {token: number for number, (tokens, _) in enumerate(documents) for token in tokens}
    for batch in pack(as_lists(documents), tokens_per_row=30, rows=3, pad=PAD):
        mask = batch.mask()
        rows, width = batch.tokens.shape
        assert mask.shape == (rows, 1, width, width)
        for row, tokens in enumerate(batch.tokens.tolist()):
            expected = [
                [other <= at and owner.get(tokens[at]) == owner.get(tokens[other]) for other in range(width)]
                for at in range(width)
            ]
            assert mask[row, 0].tolist() == expected
        padding = batch.document == 0
        assert (batch.tokens[padding] == PAD).all()
        assert (batch.targets[padding] == IGNORED).all()


def test_a_long_document_loses_the_oldest_part_of_its_prompt() -> None:
    (tokens, _), *others = documents = made([(9, [2, 3]), (3, [1])])
    (batch,) = pack(as_lists(documents), tokens_per_row=10, rows=4, pad=PAD)
    found = sorted(unpack(batch))
    assert found[0][0] == tokens[:1] + tokens[-9:]
    assert found[0][1] == pytest.approx([0] * 5 + [1 / 2] * 2 + [1 / 3] * 3)
    assert found[1:] == others


@pytest.mark.parametrize("tokens_per_row", [0, 5])
def test_a_response_is_never_cut(tokens_per_row: int) -> None:
    documents = as_lists(made([(2, [1]), (4, [2, 3])]))
    assert pack(documents, tokens_per_row=6, rows=1, pad=PAD)
    with pytest.raises(UserError, match=r"^Rows of \d tokens are too short .* of 9: raise tokens_per_row"):
        pack(documents, tokens_per_row=tokens_per_row, rows=1, pad=PAD)
