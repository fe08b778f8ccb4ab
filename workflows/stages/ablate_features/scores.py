"""The scores of the variants: fits one, reads what it is scored on, and judges all by their intervals."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.common.collectives import single_worker_group
from models.evaluation.variants import compare, conclude, gate_curve
from models.ranking import fitting
from models.ranking.ranker import Ranker
from models.ranking.schedule import in_memory
from models.ranking.settings import RankerSettings
from models.ranking.training import Trainer
from operators.columns import filled_matrix, matrix_column, positions
from operators.features.long_history import LISTED, described, read_prefixes, shared_prefixes
from operators.features.ranker_inputs import Examples, laid_out, predict, read_decoded, read_embeddings
from operators.features.tokens import NULL_ID
from operators.log.events import SPLITS, Events, counts, histories
from operators.log.partitions import open_log, read_user_ids
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from workflows.catalogs.synthetic.truth import pair_probability
from workflows.stages.ablate_features.variants import (
    GATE,
    ID,
    VARIANTS,
    truth_of_items,
    variant_items,
    variant_prefixes,
    variant_settings,
)

MOST_EXAMPLES = 20_000_000  # that are read whole, by every fit
# Sets of rows that variants are compared on, and how a sentence calls them.
PARTS = {"test": "on the test split", "test_cold": "on cold items", "truth_cold": "on cold items, by true clicks"}


Fitted = dict[str, list[dict[str, list[float]]]]  # by variant, of each seed, what `score` returns


class Pairs(NamedTuple):
    """Users x items that training never saw, in a catalogue that knows the probability of each click."""

    examples: pa.Table  # [users * items], user by user, in the form of features/test
    probability: np.ndarray  # float64 [users, items], of a click


class Rows(NamedTuple):
    """The rows of features/ that every variant is fitted and scored on."""

    train: pa.Table
    valid: pa.Table
    test: pa.Table
    pairs: Pairs | None


def read_examples(run: RunDir, catalog: str, *, users: int) -> Rows:
    """Reads the examples of a run, MOST_EXAMPLES at most, and makes the pairs of so many users, see `true_pairs`.

    Raises:
        UserError: there are more.
    """
    number = sum(files.dataset(run.uri("features", name)).count_rows() for name in SPLITS)
    if number > MOST_EXAMPLES:
        raise UserError(
            f"ablate_features holds all examples of the log in memory, {MOST_EXAMPLES:,} at most, and here are "
            f"{number:,}: run it on a catalogue with fewer users, or leave it out."
        )
    train, valid, test = (run.read_table("features", name) for name in ("train", "valid", "test"))
    return Rows(train, valid, test, true_pairs(run, catalog, train, users=users))


def score(
    settings: RankerSettings, rows: Rows, run: RunDir, catalog: str, name: str, seed: int
) -> dict[str, list[float]]:
    """Fits one variant from one seed and returns its scores.

    Returns:
        `test` and, if there are any, `pairs`: the probabilities of the part's rows, rounded to float32.
    """
    variant = VARIANTS[name]
    settings = variant_settings(settings, variant)
    spec, table = run.read_json("features", "spec.json"), run.read_table("features", "items")
    levels, length = 0, 0 if variant.long == "none" else spec.get(LISTED) or spec["history"]
    if length:
        prefixes = variant_prefixes(read_prefixes(run), variant, seed=seed)
        rows, levels = with_long(rows, run, prefixes, length=length), prefixes.shape[1]
    spec = described(spec, levels=levels, length=length)
    embeddings = image_vectors(run) if variant.image else read_embeddings(run)
    config = settings.ranker(spec, embeddings.schema.field("embedding").type.list_size)
    decoded = read_decoded(run, table["item_id"]) if variant.decoded else None
    items = laid_out(variant_items(table, variant, run, catalog, seed=seed), embeddings, config, decoded)
    train, valid, test = (Examples(part, config.dense) for part in (rows.train, rows.valid, rows.test))
    data = fitting.Data(config, items, in_memory(train), in_memory(valid))
    best: dict[str, torch.Tensor] = {}

    def improved(trainer: Trainer) -> None:
        best.update(trainer.gather() or {})

    torch.manual_seed(seed)
    with single_worker_group():
        trainer = Trainer(fitting.make_ranker(data), device=torch.device("cpu"), seed=seed, **settings.optimisation())
        fitting.fit(settings, trainer, data, fitting.Keep(lambda metrics, save: None, improved), seed=seed)
    ranker = Ranker(config).eval()
    ranker.load_state_dict(best, assign=True)
    parts = {"test": test}
    if rows.pairs is not None:
        parts["pairs"] = Examples(rows.pairs.examples, config.dense)
    return {part: predict(ranker, items, each).astype(np.float32).tolist() for part, each in parts.items()}


def with_long(rows: Rows, run: RunDir, prefixes: np.ndarray, *, length: int) -> Rows:
    """Returns the rows with second histories by these prefixes, from the whole log before each, see `shared_prefixes`.

    Those of pairs are from what the training rows hold, as their other features are.
    """
    log = open_log(run)
    parts = [log.part(number) for number in range(log.about.partitions)]
    users = np.sort(np.concatenate([part.users for part in parts]))
    events = [replace(part.events, user=np.searchsorted(users, part.users)[part.events.user]) for part in parts]
    whole = reduce(Events.extend, events)

    def added(table: pa.Table, users: np.ndarray, log: Events) -> pa.Table:
        user, time = table["user_hash"].to_numpy(), table["timestamp"].cast(pa.int64()).to_numpy()
        item = table["row"].to_numpy().astype(np.int64)
        shared = shared_prefixes(log, prefixes, np.searchsorted(users, user), item, time, length=length).columns()
        kept = table.drop_columns([name for name in shared if name in table.column_names])
        return pa.table({**{name: kept[name] for name in kept.column_names}, **shared})

    train, valid, test = (added(table, users, whole) for table in (rows.train, rows.valid, rows.test))
    pairs = rows.pairs and rows.pairs._replace(examples=added(rows.pairs.examples, *trained(rows.train)))
    return Rows(train, valid, test, pairs)


def trained(train: pa.Table) -> tuple[np.ndarray, Events]:
    """Returns the hashes of the users of training rows, int64 [U], and the rows as events of positions in them."""
    known, code = np.unique(train["user_hash"].to_numpy(), return_inverse=True)
    row, time = train["row"].to_numpy().astype(np.int64), train["timestamp"].cast(pa.int64()).to_numpy()
    return known, Events(code, row, time, train["label"].to_numpy())


def image_vectors(run: RunDir) -> pa.Table:
    """Returns the items' pooled image embeddings in the form of embeddings/, NaN where an item has none."""
    items = run.read_table("items", columns=["item_id", "image_vector"])
    values, known = filled_matrix(items["image_vector"])
    values[~known] = np.nan
    return pa.table({"item_id": items["item_id"], "embedding": matrix_column(values)})


def true_pairs(run: RunDir, catalog: str, train: pa.Table, *, users: int) -> Pairs | None:
    """Returns users of training x items that it never saw, with the features of the end of training.

    The timestamp of a pair is the item's first one, its position is 1; nothing later than training is in these rows.

    Returns:
        None without such items, or in a catalogue without a known truth.
    """
    uri = truth_of_items(catalog)
    if uri is None:
        return None
    spec = run.read_json("features", "spec.json")
    items = run.read_table("features", "items", columns=["item_id", "item"])
    seen = files.read_table(uri, columns=["item_id", "first_seen"])
    at = positions(items["item_id"], seen["item_id"])
    cold = np.flatnonzero((items["item"].to_numpy() == NULL_ID) & (at >= 0))
    if not len(cold):
        return None
    known, events = trained(train)
    chosen = np.arange(len(known))[:users]  # in the order of their hashes
    user, row = np.repeat(chosen, len(cold)), np.tile(cold, len(chosen))
    end = np.full(len(user), events.time.max() + 1)
    values, offsets = histories(events, chosen, end[: len(chosen)], length=spec["history"])
    each = pa.ListArray.from_arrays(offsets, values).take(pa.array(np.repeat(np.arange(len(chosen)), len(cold))))
    hashes = np.zeros(len(known), dtype=np.int64)
    hashes[events.user] = train["user"].to_numpy()
    known_counts = counts(events, row, user, end, rates=spec["labels"])
    unknown = np.full(len(user), np.nan, dtype=np.float32)  # in place of an impression's context
    examples = pa.table(
        {
            "row": row.astype(np.int32),
            "user": hashes[user],
            "user_hash": known[user],
            "timestamp": end,
            "history": each,
            **{name: known_counts.get(name, unknown) for name in spec["dense"]},
            "label": np.zeros(len(user), dtype=np.float32),
        }
    )
    impressions = pa.table(
        {
            "user_id": read_user_ids(run, known[user]),
            "item_id": items["item_id"].take(pa.array(row)),
            "timestamp": seen["first_seen"].take(pa.array(at[row])),
            "position": np.ones(len(user), dtype=np.int32),
        }
    )
    return Pairs(examples, pair_probability(catalog, impressions).reshape(len(chosen), len(cold)))


def judge(fitted: Fitted, rows: Rows, items: pa.Table, *, seed: int, draws: int) -> dict[str, Any]:
    """Compares the scores of all variants with those of ids alone.

    Args:
        fitted: by variant the scores from each seed, see `score`.
        rows: that they are of.
        items: features/items.
        seed: of the resamples.
        draws: number of resamples.

    Returns:
        metrics/ablate_features.json: `test`, by the clicks of the test split, `test_cold`, by those on items that
        training never saw, `truth_cold`, by the true probabilities of clicks on them, each as `conclude` returns it;
        `gate_curve`, of the last of these that there is.
    """
    _, user = np.unique(rows.test["user_hash"].to_numpy(), return_inverse=True)
    label, row = rows.test["label"].to_numpy(), rows.test["row"].to_numpy()
    cold = items["item"].to_numpy()[row] == NULL_ID
    settings: dict[str, Any] = {"seed": seed, "draws": draws, "base": ID}
    clicks, clicked = _scores(fitted, "test"), (label > 0).astype(np.float64)
    compared = {"test": compare((user,), clicked, clicks, **settings)}
    if len(np.unique(label[cold])) == 2:
        on_cold = {name: each[:, cold] for name, each in clicks.items()}
        compared["test_cold"] = compare((user[cold], row[cold]), clicked[cold], on_cold, **settings)
    if rows.pairs is not None:
        probability = rows.pairs.probability
        users_and_items = tuple(code.reshape(-1) for code in np.indices(probability.shape))
        true = _scores(fitted, "pairs")
        compared["truth_cold"] = compare(users_and_items, probability.reshape(-1), true, **settings)
    metrics: dict[str, Any] = {part: conclude(each, VARIANTS, PARTS[part]) for part, each in compared.items()}
    last = list(compared.values())[-1]
    metrics["gate_curve"] = gate_curve({rate: last[name] for rate, name in GATE.items() if name in last})
    return metrics


def _scores(fitted: Fitted, part: str) -> dict[str, np.ndarray]:
    """Returns the scores of a part by variant, float32 [S, M]."""
    return {name: np.array([one[part] for one in by_seed], np.float32) for name, by_seed in fitted.items()}
