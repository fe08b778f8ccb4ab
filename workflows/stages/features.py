"""Features: split the log, and write what the ranker learns from, as known at each event's time.

Writes features/items and features/users (the state at the end of the log, which serving starts from),
features/{train,valid,test} (one row per example, items by their row in features/items) and features/spec.json.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from operators.columns import matrix_of, read_rows
from operators.features.items import item_features
from operators.features.tokens import HASH, NULL_ID, Tokens
from operators.log.encoding import Log, read_log
from operators.log.events import (
    SPLITS,
    Events,
    counts,
    draw_negatives,
    first_interactions,
    histories,
    known_items,
)
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from workflows.engine.stage import Context, Result, Stage, StageConfig


class Config(StageConfig):
    """Settings of the features stage."""

    history: int = Field(default=20, ge=1, description="positive items of the user's past per example")
    negatives: int = Field(default=4, ge=1, description="negatives per positive, for a log without labels")
    tokens: Tokens = Field(default=Tokens(), description="one way for captions, interests, titles and descriptions")

    def reads_split(self) -> bool:
        """Examples are written by its parts."""
        return True


class FeaturesStage(Stage[Config]):
    """Features: split the log, and write what the ranker learns from, as known at each event's time."""

    config_type = Config
    version = 2
    reads = ("ingest", "interpret", "quantize")

    def run(self, config: Config, context: Context) -> Result:
        """Writes the features of a run whose items are interpreted and quantized.

        Raises:
            UserError: there are no interactions, labels are missing in part or all 0, or a split would be empty.
        """
        run = context.run
        log = read_log(run)
        events, items = log.events, read_items(run, log.items, config.tokens)
        interactions = files.dataset(run.uri("catalog", "interactions"))
        given = interactions.count_rows()
        split = context.split.numbers(events)
        if "label" in interactions.schema.names and not log.labelled:
            context.log("no event is labelled 0: every event counts as a positive, and negatives are sampled")
        if given > len(events):
            context.log(f"{given - len(events)} events are about items that interpret rejected, and are left out")
        context.log(f"{len(events)} events, split by {'time' if context.split.kind == 'time' else 'last event'}")
        # Without labels the task is discovery, as in serving: an item is an example when a user first meets it.
        eligible = np.ones(len(events), dtype=bool) if log.labelled else first_interactions(events)

        train = split == 0
        users = np.where(np.isin(np.arange(len(log.users)), events.user[train]), log.user_ids(), NULL_ID)
        warm = np.isin(np.arange(items.num_rows), events.item[train])
        # the log names its columns as it likes: the prefix keeps them off the table's own
        context_columns = {f"context_{name}": log.context[name] for name in log.context.column_names}
        metrics: dict[str, Any] = {"labels": log.labelled, "repeats": int((~eligible).sum())}
        for number, name in enumerate(SPLITS):
            known = events.take(split <= number)
            rows = np.flatnonzero((split == number) & eligible)
            examples = events.take(rows)
            left_out = 0
            if not log.labelled:
                # Negatives are drawn from items that had an event, so one without would give its label away.
                known_item = known_items(known, examples.item, examples.time)
                left_out = int((~known_item).sum())
                rows, examples = rows[known_item], examples.take(known_item)
                if not len(rows):
                    raise UserError(
                        f"No event of the {name} split is about an item that had an event before: give a longer log."
                    )
                seed = context.seed * len(SPLITS) + number
                negatives, source = draw_negatives(
                    examples, known, items=items.num_rows, ratio=config.negatives, seed=seed
                )
                examples, rows = examples.extend(negatives), np.concatenate([rows, rows[source]])
            table = pa.table(
                {
                    "user_id": log.users.take(pa.array(examples.user)),
                    "item_id": items["item_id"].take(pa.array(examples.item)),
                    "row": examples.item.astype(np.int32),
                    "user": users[examples.user],
                    "history": history_column(known, examples.user, examples.time, config.history),
                    **counts(known, examples.item, examples.user, examples.time, rates=log.labelled),
                    **{column: values.take(pa.array(rows)) for column, values in context_columns.items()},
                    "label": examples.label,
                    "timestamp": pa.array(examples.time, pa.timestamp("us", tz="UTC")),
                }
            )
            run.write_table(table, "features", name)
            metrics[name] = {
                "rows": len(examples),
                "first_of_item": left_out,
                "positive_rate": float(examples.label.mean()),
                "cold_users": float((users[examples.user] == NULL_ID).mean()),
                "cold_items": float((~warm[examples.item]).mean()),
            }
        now = events.time.max() + 1
        dense = write_state(run, items, warm, log, users, history=config.history, now=int(now))
        spec = {
            "hash": HASH,
            "tokens": config.tokens.model_dump(),
            "history": config.history,
            "labels": log.labelled,
            "dense": [*dense, *context_columns],
        }
        run.write_json(spec, "features", "spec.json")
        return Result(
            rows_in=given,
            rows_out=len(events),
            rejected=given - len(events),
            metrics=metrics,
        )


def read_items(run: RunDir, ids: pa.ChunkedArray, tokens: Tokens) -> pa.Table:
    """Returns the features of these items, in their order.

    Raises:
        ArtifactError: a table of the run lacks an item.
    """
    items = read_rows(run, ids, "items", columns=["title", "description", "caption", "interests"])
    attributes = read_rows(run, ids, "catalog", "items", columns=["attributes"])["attributes"]
    codes = matrix_of(read_rows(run, ids, "sids", columns=["codes"])["codes"])
    return item_features(items.append_column("attributes", attributes), codes[:, :-1], tokens)


def history_column(known: Events, user: np.ndarray, time: np.ndarray, length: int) -> pa.ListArray:
    """Item rows of each query's history: list<int32>."""
    values, offsets = histories(known, user, time, length=length)
    return pa.ListArray.from_arrays(offsets, values)


def write_state(
    run: RunDir, items: pa.Table, warm: np.ndarray, log: Log, users: np.ndarray, *, history: int, now: int
) -> list[str]:
    """Writes items and users with their counts as of `now`, microseconds; returns the names of the counts.

    Items that training never saw get the id of the unknown item, as users do.
    """
    every_item, every_user = np.arange(items.num_rows), np.arange(len(log.users))
    users_now = np.full(len(every_user), now)
    of_items = counts(log.events, every_item, 0 * every_item, np.full(len(every_item), now), rates=log.labelled)
    of_users = counts(log.events, 0 * every_user, every_user, users_now, rates=log.labelled)
    ids = np.where(warm, items["item"].to_numpy(), NULL_ID)
    items = items.set_column(items.schema.get_field_index("item"), "item", pa.array(ids))
    for name, values in of_items.items():
        if name.startswith("item_"):
            items = items.append_column(name, pa.array(values))
    run.write_table(items, "features", "items")
    table = {
        "user_id": log.users,
        "user": users,
        "history": history_column(log.events, every_user, users_now, history),
        "seen": history_column(log.events, every_user, users_now, len(log.events)),
        **{name: values for name, values in of_users.items() if name.startswith("user_")},
    }
    run.write_table(pa.table(table), "features", "users")
    return list(of_items)
