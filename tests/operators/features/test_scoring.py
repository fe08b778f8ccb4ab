from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.common.jagged import Jagged, gather
from models.ranking.config import Dcnv2, Dlrm, RankerConfig, Table
from models.ranking.ranker import Ranker, load_ranker, moments, save_ranker
from operators.columns import jagged_of, matrix_column
from operators.features import scoring
from operators.features.ranker_inputs import ItemFeatures, laid_out
from operators.features.scoring import Scorer

ITEMS, WIDTH, HISTORY, SECOND = 9, 3, 3, 2
RANDOM = np.random.default_rng(0)
TOKENS = {
    name: [RANDOM.integers(0, 500, RANDOM.integers(0, 5)).tolist() for _ in range(ITEMS)] for name in ("caption", "sid")
}
CATALOGUE = pa.table(
    {"item_id": [str(row) for row in range(ITEMS)], "item": RANDOM.integers(1, 500, ITEMS)}
    | {name: pa.array(lists, pa.list_(pa.int64())) for name, lists in TOKENS.items()}
)
VECTORS = RANDOM.normal(size=(ITEMS, WIDTH)).astype(np.float32)
VECTORS[4] = np.nan
EMBEDDINGS = pa.table({"item_id": CATALOGUE["item_id"], "embedding": matrix_column(VECTORS)})
USERS = torch.tensor([123, 0, 45, 7])
HISTORIES = [[1, 2, 4], [], [8, 0, 1, 5, 5, 3], [4]]
CHOICES = {
    "pooling": ("sum", "mean", "attention"),
    "hashes": (1, 2),
    "history": (0, HISTORY),
    "long": (0, SECOND),
    "content": (0, WIDTH),
    "dtype": ("fp32", "fp16", "int8"),
}


def config_of(pooling: str, hashes: int, history: int, long: int, content: int, **others: object) -> RankerConfig:
    def table(name: str, **extra: object) -> Table:
        return Table(rows=60, features=(name, f"history_{name}"), **extra)

    bag = {"pooling": pooling, "hashes": hashes, "importance": 40 if hashes > 1 else 0}
    tables = {
        "user": Table(rows=60, features=("user",)),
        "item": table("item"),
        "caption": table("caption", **bag),
        "sid": table("sid", pooling="mean"),
    }
    given = {"tables": tables, "dense": ("age", "rate"), "architecture": Dlrm(hidden=(8,)), "embedding_dim": 8}
    return RankerConfig(**{**given, "history": history, "long": long, "content_dim": content, **others})


def ranker_of(config: RankerConfig, folder: Path, dtype: str = "fp32") -> Ranker:
    torch.manual_seed(0)
    made = Ranker(config)
    made.embeddings.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    contents = moments(torch.from_numpy(VECTORS)) if config.content_dim else None
    made.set_statistics(dense=moments(torch.randn(100, len(config.dense)) * 5 + 3), content=contents, rate=0.2)
    save_ranker(str(folder), config, made.state_dict(), table_dtype=dtype)
    return load_ranker(str(folder))


def lists(values: list[list[int]]) -> Jagged:
    return jagged_of(pa.array(values, pa.list_(pa.int32())))


def asked(owner: list[int], histories: list[list[int]], config: RankerConfig, seed: int = 0) -> dict[str, object]:
    random = np.random.default_rng(seed)
    dense = random.normal(size=(len(owner), len(config.dense))).astype(np.float32) * 5
    dense[random.random(dense.shape) < 0.2] = np.nan
    second = [random.integers(0, ITEMS, random.integers(0, SECOND + 2)).tolist() for _ in owner]
    return {
        "user": USERS[: len(histories)],
        "history": lists(histories),
        "owner": torch.tensor(owner, dtype=torch.int64),
        "rows": torch.from_numpy(random.integers(0, ITEMS, len(owner))),
        "dense": torch.from_numpy(dense),
        "long": lists(second) if config.long else None,
    }


@torch.inference_mode()
def plain(ranker: Ranker, items: ItemFeatures, given: dict) -> torch.Tensor:
    owner = given["owner"]
    of_pairs = {"user": given["user"][owner], "history": gather(given["history"], owner)}
    return ranker(items.inputs(**of_pairs, **{name: given[name] for name in ("rows", "dense", "long")}))[0]


def agrees(config: RankerConfig, folder: Path, dtype: str = "fp32") -> None:
    ranker, items = ranker_of(config, folder, dtype), laid_out(CATALOGUE, EMBEDDINGS, config)
    given = asked([0, 0, 0, 1, 1, 3, 3, 3], HISTORIES, config)  # nothing is asked of user 2
    expected, found = plain(ranker, items, given), Scorer(ranker, items).logits(**given)
    assert found.dtype == torch.float32
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    given |= {"owner": torch.tensor([2] * 8)}
    torch.testing.assert_close(Scorer(ranker, items).logits(**given), plain(ranker, items, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", list(product(*CHOICES.values())), ids=lambda choice: "-".join(map(str, choice)))
def test_pairs_score_as_the_ranker_says_of_their_inputs(choice: tuple, tmp_path: Path) -> None:
    *choice, dtype = choice
    agrees(config_of(*choice), tmp_path, dtype)


@pytest.mark.parametrize("history", [0, HISTORY])
@pytest.mark.parametrize("left_out", ["user", "item", "caption", "sid"])
def test_tables_may_be_left_out_and_others_not_look_at_the_past(left_out: str, history: int, tmp_path: Path) -> None:
    config = config_of("attention", 2, history, SECOND, WIDTH, architecture=Dcnv2(hidden=(8,)))
    tables = {name: table for name, table in config.tables.items() if name != left_out}
    agrees(config.model_copy(update={"tables": tables}), tmp_path / "without")
    tables = config.tables | {left_out: config.tables[left_out].model_copy(update={"features": (left_out,)})}
    agrees(config.model_copy(update={"tables": tables}), tmp_path / "no past")


def test_a_ranker_may_know_nothing_but_users(tmp_path: Path) -> None:
    tables = {"user": Table(rows=60, features=("user",))}
    agrees(config_of("sum", 1, 0, 0, 0, tables=tables), tmp_path)


@pytest.fixture(scope="module", params=[(0, 0), (HISTORY, SECOND)], ids=["bags", "attention"])
def scorers(request, tmp_path_factory) -> tuple[Ranker, ItemFeatures, Scorer]:
    config = config_of("attention", 2, *request.param, WIDTH)
    ranker = ranker_of(config, tmp_path_factory.mktemp("ranker"))
    items = laid_out(CATALOGUE, EMBEDDINGS, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "POOLED", 4)
        return ranker, items, Scorer(ranker, items)


@settings(deadline=None, max_examples=50)
@given(
    histories=st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6), min_size=1, max_size=4),
    counts=st.lists(st.integers(0, 5), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_any_pairs_score_so_and_in_blocks(scorers, histories, counts, seed) -> None:
    ranker, items, scorer = scorers
    given = asked([user for user in range(len(histories)) for _ in range(counts[user])], histories, ranker.config, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "PAIRS", 3)
        found = scorer.logits(**given)
    assert found.shape == (len(given["rows"]),)
    if len(found):
        torch.testing.assert_close(found, plain(ranker, items, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("histories", [[], HISTORIES], ids=["nobody", "no items"])
def test_no_pairs_are_no_logits(scorers, histories) -> None:
    assert scorers[2].logits(**asked([], histories, scorers[0].config)).shape == (0,)
