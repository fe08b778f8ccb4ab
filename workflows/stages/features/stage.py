"""Features: split the log, and write what the ranker learns from, as known at each event's time.

Writes features/items and features/users (the state at the end of the log, which serving starts from),
features/{train,valid,test} (one row per example, items by their row in features/items) and features/spec.json.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from operators.columns import matrix_of, read_block
from operators.features.items import as_trained, item_features
from operators.features.long_history import described, read_prefixes
from operators.features.tokens import HASH, Tokens, sid_tokens, token_hashes
from operators.log.counters import in_all
from operators.log.events import SPLITS, Known, item_counts, user_counts
from operators.log.partitions import PartitionedLog, check_trained, item_ids, open_log, read_about
from operators.log.split import ranges
from storage import exchange, files
from storage.errors import UserError
from storage.run import RunDir
from workflows.engine.stage import Context, Result, Stage, StageConfig
from workflows.stages.features import partitions
from workflows.stages.features.partitions import Work


class Config(StageConfig):
    """Settings of the features stage."""

    history: int = Field(default=20, ge=1, description="positive items of the user's past per example")
    long_history: int = Field(
        default=0,
        ge=0,
        description="positive items of the whole past with most of the candidate's semantic ID; 0: none",
    )
    negatives: int = Field(default=4, ge=1, description="negatives per positive, for a log without labels")
    tokens: Tokens = Field(default=Tokens(), description="one way for captions, interests, titles and descriptions")

    def reads_split(self) -> bool:
        """Examples are written by its parts."""
        return True


class FeaturesStage(Stage[Config]):
    """Features: split the log, and write what the ranker learns from, as known at each event's time."""

    config_type = Config
    version = 6
    reads = ("ingest", "interpret", "quantize")

    def run(self, config: Config, context: Context) -> Result:
        """Writes the features of a run whose items are interpreted and quantized.

        Raises:
            UserError: there are no interactions, labels are all 0, or a split would be empty.
        """
        run, log = context.run, open_log(context.run)
        about, given = log.about, read_about(run)
        assert given is not None  # noqa: S101 - for the type checker: the log is open
        cuts = log.cuts(context.split)
        if about.labels and not about.labelled:
            context.log("no event is labelled 0: every event counts as a positive, and negatives are sampled")
        cut_by = "time" if context.split.kind == "time" else "last event"
        several = f" in {about.partitions} partitions" if about.partitions > 1 else ""
        context.log(f"{about.events} events{several}, split by {cut_by}")
        work = Work(
            root=run.root,
            folder=run.uri("checkpoints", "features", context.fingerprint),
            split=context.split,
            cuts=cuts,
            ranges=tuple(ranges(log.moments, about.first, about.last, about.partitions).tolist()),
            labelled=about.labelled,
            history=config.history,
            long_history=config.long_history,
            negatives=config.negatives,
            seed=context.seed,
        )
        if not files.exists(work.folder):  # what is there is of another attempt
            files.remove(run.uri("features"))
        parts = write_parts(work, log, config.tokens, context)
        kept, counted = sum(part["events"] for part in parts), int(work.state("end").items[-1].events.sum())
        if lost := given.events - kept:
            context.log(f"{lost} events are about items that interpret rejected, and are left out")
        if kept != counted:
            raise RuntimeError(f"the partitions hold {kept} events, the ranges of time {counted}")
        metrics = totals(parts, labelled=about.labelled)
        spec = {
            "hash": HASH,
            "tokens": config.tokens.model_dump(),
            "history": config.history,
            "labels": about.labelled,
            "dense": [*counts_of(labelled=about.labelled), *log.about.context],
        }
        if config.long_history:
            spec = described(spec, levels=read_prefixes(run).shape[1], length=config.long_history)
        run.write_json(spec, "features", "spec.json")
        return Result(rows_in=given.events, rows_out=kept, rejected=lost, metrics=metrics)


def write_parts(work: Work, log: PartitionedLog, tokens: Tokens, context: Context) -> list[dict[str, Any]]:
    """Writes items, examples and users, piece by piece; returns what `partitions.write_part` says of each partition.

    What a killed attempt has finished is not done again.
    """
    number = log.about.partitions
    numbers, blocks = range(number), range(-(-len(log.items) // files.PART_ROWS))
    steps = (
        ("deal", partial(partitions.deal_events, work), numbers),
        ("tally", partial(partitions.tally_range, work, number), numbers),
        ("add", partial(partitions.add_up, work), [len(log.items)]),
        ("sids", partial(write_trained, work), [len(log.items)]),
        ("items", partial(write_items, work, tokens), blocks),
        ("answer", partial(partitions.answer_range, work, number), numbers),
        ("write", partial(partitions.write_part, work), numbers),
    )
    found: list[dict[str, Any]] = []
    for place, (name, function, keys) in enumerate(steps):
        folder = f"features/{context.fingerprint}/{name}"
        found = context.pieces(function, keys, name=folder, here=number == 1, step=(place, len(steps)))
    return found


def totals(parts: list[dict[str, Any]], *, labelled: bool) -> dict[str, Any]:
    """Returns the metrics of the stage from the counts of its partitions.

    Raises:
        UserError: a split has no example, or nothing in training was liked.
    """
    metrics: dict[str, Any] = {"labels": labelled, "repeats": sum(part["repeats"] for part in parts)}
    for name in SPLITS:
        sums = {key: sum(part[name][key] for part in parts) for key in parts[0][name]}
        if not sums["rows"]:
            raise UserError(
                f"No event of the {name} split is about an item that had an event before: give a longer log."
            )
        if name == SPLITS[0]:
            check_trained(sums["positives"])
        metrics[name] = {
            "rows": sums["rows"],
            "first_of_item": sums["first_of_item"],
            "positive_rate": sums["positives"] / sums["rows"],
            "cold_users": sums["cold_users"] / sums["rows"],
            "cold_items": sums["cold_items"] / sums["rows"],
        }
    return metrics


def write_trained(work: Work, items: int) -> dict[str, int]:
    """Writes the hashes of the tokens that the semantic IDs of the items in training have."""
    ids, warm, found = item_ids(work.run), work.warm_items(), np.empty(0, np.int64)
    for start in range(0, items, files.PART_ROWS):
        some = slice(start, start + files.PART_ROWS)
        tokens = sid_tokens(read_codes(work.run, ids[some], start)[warm[some]])
        found = np.union1d(found, token_hashes(tokens))
    exchange.deal(work.uri("sids", "trained"), pa.table({"hash": found}))
    return {"tokens": len(found)}


def read_codes(run: RunDir, ids: pa.ChunkedArray, start: int) -> np.ndarray:
    """Returns the semantic IDs of a block of the items without suffixes, int32 [N, L]."""
    return matrix_of(read_block(run, ids, start, "sids", columns=["codes"])["codes"])[:, :-1]


def write_items(work: Work, tokens: Tokens, block: int) -> dict[str, int]:
    """Writes a block of the items with their counts after the last event, a part of features/items."""
    run, start = work.run, block * files.PART_ROWS
    ids, rows = item_ids(run).slice(start, files.PART_ROWS), slice(start, start + files.PART_ROWS)
    items = read_block(run, ids, start, "items", columns=["title", "description", "caption", "interests", "attributes"])
    trained = exchange.collect([work.uri("sids", "trained")])["hash"].to_numpy()
    features = item_features(items, read_codes(run, ids, start), tokens)
    features = as_trained(features, work.warm_items()[rows], trained)
    counted, about = work.state("end").items[-1], open_log(run).about
    known = Known(*(values[rows] for values in counted))
    when = np.full(len(ids), about.last + 1)
    total = in_all(counted, len(ids))
    for name, values in item_counts(known, total, when, rates=work.labelled).items():
        features = features.append_column(name, pa.array(values))
    files.write_part(files.part_uri(run.uri("features", "items"), block), features)
    return {"items": features.num_rows}


def counts_of(*, labelled: bool) -> list[str]:
    """Returns the names of the counts of items and of users, in the order in which the ranker gets them."""
    none = Known(*np.empty((3, 0), np.int64))
    return [*item_counts(none, none, none.first, rates=labelled), *user_counts(none, none, rates=labelled)]
