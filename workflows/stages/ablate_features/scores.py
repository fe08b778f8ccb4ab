"""What the arms of the evidence score: fitted one by one on every worker, read together, judged by their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from models.evaluation.variants import by_clicks, by_probability, conclude, gate_curve
from models.ranking import fitting
from models.ranking.ranker import Ranker
from models.ranking.settings import RankerSettings
from models.ranking.training import Trainer
from operators.columns import filled_matrix, matrix_column, positions
from operators.features.ranker_inputs import Examples, ItemFeatures, predict
from operators.features.tokens import NULL_ID
from operators.log.events import Events, counts, histories
from storage import files
from storage.hashing import hash_order
from storage.run import RunDir
from workflows.catalogs.synthetic.behaviour import true_probability
from workflows.distributed import training
from workflows.engine.stage import Context
from workflows.stages.ablate_features.variants import ARMS, GATE, ID, arm_items, arm_settings, truth_of_items


class Pairs(NamedTuple):
    """Users x items that training never saw, in a catalogue that knows what each user thinks of each item."""

    examples: pa.Table  # [users * items], user by user, in the form of features/test
    probability: np.ndarray  # float64 [users, items], of a click


def loop(task: dict[str, Any]) -> None:
    """`fit_arms` in the form that Ray Train calls."""
    fit_arms(task, training.report)


def fit_arms(task: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Fit this worker's share of the rankers, each by itself, and write their scores.

    What a killed attempt has scored is not fitted again.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    alone = [dist.new_group([other]) for other in range(workers)][rank]
    run = RunDir(task["root"])
    parts = {name: run.read_table("features", name) for name in ("train", "valid", "test")}
    pairs = true_pairs(run, task["catalog"], parts["train"], users=task["users"])
    if pairs is not None:
        parts["pairs"] = pairs.examples
    jobs = task["jobs"]
    for start in range(0, len(jobs), workers):
        if start + rank < len(jobs):
            arm, seed = jobs[start + rank]
            uri = _uri(task["scores"], arm, seed)
            if not files.exists(uri):
                settings = RankerSettings.model_validate(task["settings"])
                found = score(run, task["catalog"], parts, settings, arm, seed, alone)
                files.write_part(uri, pa.table({"part": list(found), "score": list(found.values())}))
        report({"done": min(start + workers, len(jobs))})


def score(
    run: RunDir,
    catalog: str,
    parts: dict[str, pa.Table],
    settings: RankerSettings,
    name: str,
    seed: int,
    group: dist.ProcessGroup,
) -> dict[str, np.ndarray]:
    """Fit one arm from one seed; probabilities of the rows of `test` and, where there are any, of `pairs`, float32."""
    arm = ARMS[name]
    settings = arm_settings(settings, arm)
    spec, table = run.read_json("features", "spec.json"), run.read_table("features", "items")
    embeddings = image_vectors(run) if arm.image else run.read_table("embeddings")
    config = settings.ranker(spec, embeddings.schema.field("embedding").type.list_size)
    items = ItemFeatures(arm_items(table, arm, run, catalog, seed=seed), embeddings, config)
    examples = {part: Examples(rows, config.dense) for part, rows in parts.items()}
    data = fitting.Data(config, items, examples.pop("train"), examples.pop("valid"))
    torch.manual_seed(seed)
    trainer = Trainer(
        fitting.make_ranker(data), device=torch.device("cpu"), seed=seed, group=group, **settings.optimisation()
    )
    best: dict[str, torch.Tensor] = {}

    def improved(trainer: Trainer) -> None:
        best.update(trainer.gather() or {})

    fitting.fit(settings, trainer, data, fitting.Keep(lambda metrics, save: None, improved), seed=seed)
    ranker = Ranker(config).eval()
    ranker.load_state_dict(best, assign=True)
    return {part: predict(ranker, items, rows).astype(np.float32) for part, rows in examples.items()}


def image_vectors(run: RunDir) -> pa.Table:
    """The items' pooled image embeddings in the form of embeddings/, NaN where an item has none."""
    items = run.read_table("items", columns=["item_id", "image_vector"])
    values, known = filled_matrix(items["image_vector"])
    values[~known] = np.nan
    return pa.table({"item_id": items["item_id"], "embedding": matrix_column(values)})


def true_pairs(run: RunDir, catalog: str, train: pa.Table, *, users: int) -> Pairs | None:
    """Training's users x the items it never saw, as they stand at the end of training; None without them or the truth.

    An item is met at its first moment and in the first place of the page; nothing that came after training is in
    these rows.
    """
    uri = truth_of_items(catalog)
    if uri is None:
        return None
    spec, items = (
        run.read_json("features", "spec.json"),
        run.read_table("features", "items", columns=["item_id", "item"]),
    )
    seen = files.read_table(uri, columns=["item_id", "first_seen"])
    at = positions(items["item_id"], seen["item_id"])
    cold = np.flatnonzero((items["item"].to_numpy() == NULL_ID) & (at >= 0))
    if not len(cold):
        return None
    known = train["user_id"].combine_chunks().dictionary_encode()
    chosen = hash_order(known.dictionary.to_pylist())[:users]
    events = Events(
        known.indices.to_numpy().astype(np.int64),
        train["row"].to_numpy().astype(np.int64),
        train["timestamp"].cast(pa.int64()).to_numpy(),
        train["label"].to_numpy(),
    )
    user, row = np.repeat(chosen, len(cold)), np.tile(cold, len(chosen))
    end = np.full(len(user), events.time.max() + 1)
    values, offsets = histories(events, chosen, end[: len(chosen)], length=spec["history"])
    each = pa.ListArray.from_arrays(offsets, values).take(pa.array(np.repeat(np.arange(len(chosen)), len(cold))))
    ids = dict(zip(known.dictionary.to_pylist(), range(len(known.dictionary)), strict=True))
    hashes = np.zeros(len(ids), dtype=np.int64)
    hashes[events.user] = train["user"].to_numpy()
    known_counts = counts(events, row, user, end, rates=spec["labels"])
    unknown = np.full(len(user), np.nan, dtype=np.float32)  # what the context of an impression would be
    examples = pa.table(
        {
            "row": row.astype(np.int32),
            "user": hashes[user],
            "history": each,
            **{name: known_counts.get(name, unknown) for name in spec["dense"]},
            "label": np.zeros(len(user), dtype=np.float32),
        }
    )
    asked = pa.table(
        {
            "user_id": known.dictionary.take(pa.array(user)),
            "item_id": items["item_id"].take(pa.array(row)),
            "timestamp": seen["first_seen"].take(pa.array(at[row])),
            "position": np.ones(len(user), dtype=np.int32),
        }
    )
    return Pairs(examples, true_probability(catalog, asked).reshape(len(chosen), len(cold)))


def judge(
    context: Context, scores: str, arms: Sequence[str], seeds: Sequence[int], *, users: int, draws: int
) -> dict[str, Any]:
    """What the scores of all arms show, in the form of metrics/ablate_features.json.

    `test` is by the clicks of the test split, `test_cold` by those on items that training never saw, `truth_cold` by
    the true probabilities of clicks on them. The gate curve is of the best of these that there is.
    """
    run = context.run
    test = run.read_table("features", "test", columns=["user_id", "row", "label"])
    user = test["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    label, row = test["label"].to_numpy(), test["row"].to_numpy()
    cold = run.read_table("features", "items", columns=["item"])["item"].to_numpy()[row] == NULL_ID
    found: dict[str, dict[str, list[np.ndarray]]] = {part: {arm: [] for arm in arms} for part in ("test", "pairs")}
    for arm in arms:
        for seed in seeds:
            for each in files.read_table(_uri(scores, arm, seed)).to_pylist():
                found[each["part"]][arm].append(np.array(each["score"]))
    clicks = {arm: np.stack(each) for arm, each in found["test"].items()}
    settings: dict[str, Any] = {"seed": context.seed, "draws": draws, "base": ID}
    subjects = {arm: ARMS[arm].subject for arm in arms}
    compared = {"test": by_clicks(user, label, clicks, **settings)}
    if len(np.unique(label[cold])) == 2:
        on_cold = {arm: each[:, cold] for arm, each in clicks.items()}
        compared["test_cold"] = by_clicks(user[cold], label[cold], on_cold, item=row[cold], **settings)
    pairs = true_pairs(run, context.catalog, run.read_table("features", "train"), users=users)
    if pairs is not None:
        true = {arm: np.stack(each).reshape(-1, *pairs.probability.shape) for arm, each in found["pairs"].items()}
        compared["truth_cold"] = by_probability(pairs.probability, true, **settings)
    wheres = {"test": "on the test split", "test_cold": "on cold items", "truth_cold": "on cold items, by true clicks"}
    metrics: dict[str, Any] = {part: conclude(each, subjects, wheres[part]) for part, each in compared.items()}
    best = list(compared.values())[-1]
    metrics["gate_curve"] = gate_curve({rate: best[arm] for rate, arm in GATE.items() if arm in best})
    return metrics


def _uri(folder: str, arm: str, seed: int) -> str:
    return files.join(folder, f"{arm}-{seed}.parquet")
