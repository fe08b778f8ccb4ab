"""What has changed since the run before: the log partition by partition, the items, and whether to promote."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from models.evaluation.verdict import Limits, News, judge
from operators.columns import positions
from operators.log.events import DAY_US
from operators.log.partitions import KEYS, LIKED, About, item_hashes, read_about, read_events, rows_among
from storage import files, tables
from storage.manifest import StageEntry, require_manifest
from storage.run import RunDir
from workflows.engine.stage import Context

USUAL_DAYS = 28  # before the end of the earlier log, whose volume and label rate count as usual
FEW_VALUES = 200  # of an attribute, up to which a new one is told
TOLD = 5  # new values of an attribute


def judge_update(context: Context, previous: str, limits: Limits, metrics: dict[str, Any]) -> dict[str, Any]:
    """Tells what is new since the run before, and whether this one takes its place; see `verdict.judge`.

    Args:
        context: of the stage evaluate.
        previous: URI of the run before.
        limits: of the verdict.
        metrics: of both runs' models, on the test split of this one.
    """
    run, earlier = context.run, RunDir(previous)
    entry = require_manifest(previous).stages.get("evaluate", StageEntry())
    new, old = read_about(run), read_about(earlier)
    assert new is not None and old is not None  # noqa: S101, PT018 - something was evaluated
    ordered = tables.timestamps(context.catalog) == "order"
    counts = count_log(context, earlier, new, old, ordered=ordered)
    items = item_changes(run, earlier)
    times = None if ordered else (old.last, new.last)
    learned = learned_from(counts["users_gone"], items["gone"], times, entry.metrics, limits)
    scores = compared(metrics, entry.metrics)
    drift = run.read_json("metrics", "quantize.json").get("drift")
    news = _news(counts, new, old, ordered=ordered, due=bool(learned and learned["due"]))
    found = judge(news, scores, drift, limits)
    context.log(f"{found['verdict']}: {'; '.join(found['reasons'])}")
    if learned:
        context.log(learned["told"])
    return {
        "previous": previous,
        **found,
        "log": {**counts, **news._asdict()},
        "items": items,
        "scores": scores,
        "learned_from": learned,
    }


def compared(metrics: dict[str, Any], before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the scores of the ranker and of the generator beside those of the run before, see `verdict.judge`."""
    found = dict[str, dict[str, Any]]()
    if (gain := metrics.get("auc_over_previous")) is not None:
        new, old = (metrics[name]["auc"] for name in ("ranker", "previous"))
        then = before.get("ranker", {}).get("auc")
        change = {"change": gain["mean"], "interval": gain["interval"], "relative": False}
        found["ranker"] = {"metric": "AUC", "new": new, "previous": old, **change, "previous_then": then}
    if (over := metrics.get("generator_over_previous")) is not None:
        new, old = (metrics[name]["ndcg@10"] for name in ("generator", "previous"))
        bounds = [end - 1 for end in over["ndcg@10_interval"]]
        change = {"change": over["ndcg@10"] - 1, "interval": bounds, "relative": True}
        found["generator"] = {"metric": "NDCG@10", "new": new, "previous": old, **change}
    return found


def count_log(context: Context, earlier: RunDir, new: About, old: About, *, ordered: bool) -> dict[str, int]:
    """Returns the sums of what `count_part` counts over all partitions; `ordered`: times do not compare users."""
    times = None if ordered else (new.first, old.last, _usual(old)[0])
    work = partial(count_part, context.run, earlier, times)
    name, numbers = f"evaluate/{context.fingerprint}/changes", range(new.partitions)
    parts = context.pieces(work, numbers, name=name, here=new.partitions == 1)
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _usual(old: About) -> tuple[int, bool]:
    """Returns since when the events of the earlier log count as usual, and whether their labels do.

    They do from the first 0 on, for a day at least: a log that came without labels has some since its service exports
    what it has shown.
    """
    since, labelled = max(old.first, old.last - USUAL_DAYS * DAY_US), old.labelled and old.last - old.unliked >= DAY_US
    return (max(since, old.unliked) if labelled else since), labelled


def count_part(run: RunDir, earlier: RunDir, times: tuple[int, int, int] | None, number: int) -> dict[str, int]:
    """Counts, in a partition that both logs have, what is new, what was usual, and what is gone.

    Args:
        run, earlier: whose logs they are.
        times: of the new log's first event, of the old one's last, and since when its events count as usual; None where
            they only order a user's events, so that what is new is what the old log lacks.
        number: of the partition.

    Returns:
        `new` and `usual` events and their positives; `expected`, the old events that the new log should have, as it
        begins before them and still has the item, and `kept`, those of these times and items that it has; `users_gone`,
        who had one of these and have none that is not new.
    """
    items = item_hashes(run)
    tables_ = [read_events(each, number) for each in (run, earlier)]
    (user, time, liked, there), (old_user, old_time, old_liked, still) = (
        (
            table["user"].to_numpy(),
            table["timestamp"].cast("int64").to_numpy(),
            table["label"].to_numpy() >= LIKED if "label" in table.column_names else np.ones(len(table), bool),
            rows_among(items, table["item"].to_numpy())[1],
        )
        for table in tables_
    )
    if times is None:
        key, old_key = (pl.DataFrame(each.select(KEYS[:3])).hash_rows().to_numpy() for each in tables_)
        new, usual, expected = ~np.isin(key, old_key), np.ones(len(old_time), bool), still
    else:
        first, last, since = times
        new, usual, expected = time > last, old_time >= since, still & (old_time >= first)
    return {
        "new": int(new.sum()),
        "new_positives": int(liked[new].sum()),
        "usual": int(usual.sum()),
        "usual_positives": int(old_liked[usual].sum()),
        "expected": int(expected.sum()),
        "kept": int((there & ~new).sum()),
        "users_gone": len(np.setdiff1d(old_user[expected], user[~new])),
    }


def item_changes(run: RunDir, earlier: RunDir) -> dict[str, Any]:
    """Counts items that came and that left, and names values of attributes that none had before, a few of each."""
    ids, before = (each.read_table("embeddings", columns=["item_id"])["item_id"] for each in (run, earlier))
    now, then = (_values(each) for each in (run, earlier))
    fresh = {
        key: sorted(now[key] - then[key])[:TOLD] for key in now.keys() & then.keys() if len(then[key]) <= FEW_VALUES
    }
    return {
        "new": int((positions(ids, before) < 0).sum()),
        "gone": int((positions(before, ids) < 0).sum()),
        "new_values": {key: values for key, values in sorted(fresh.items()) if values},
    }


def _values(run: RunDir) -> dict[str, set[str]]:
    """Returns the values of every attribute, but no more of one than tell that there are many."""
    found = dict[str, set[str]]()
    for batch in files.batches(run.uri("catalog", "items"), ["attributes"], files.PART_ROWS):
        for key, value in tables.entries(batch["attributes"]).select("key", "value").drop_nulls().unique().iter_rows():
            if len(found.setdefault(key, set())) <= FEW_VALUES:
                found[key].add(value)
    return found


def learned_from(
    users: int, items: int, times: tuple[int, int] | None, before: dict[str, Any], limits: Limits
) -> dict[str, Any] | None:
    """Tells what models that went on from the run before have learned from and is gone since; None where nothing is.

    What the run before had learned from and lost stands beside it until a run is fitted anew. The days to do so count
    from the first moment at which the first of the users can have gone: the end of the last log that held them all.

    Args:
        users, items: that are gone since the run before.
        times: of the last event of the log of the run before, and of the newest one, which counts as today;
            microseconds. None where times tell no day, so that nothing is ever due.
        before: metrics of the stage evaluate of the run before.
        limits: of the verdict.
    """
    told = (before.get("update") or {}).get("learned_from") or {}
    begun = told.get("since") if told.get("users") else None
    users, items = users + told.get("users", 0), items + told.get("items", 0)
    if not users and not items:
        return None
    gone = f"models have learned from {users:,} users and {items:,} items that are gone since"
    found = {"users": users, "items": items, "since": None, "refit_by": None, "due": False, "told": gone}
    if not users or times is None:
        return found
    since, today = (datetime.fromtimestamp(time // 1_000_000, UTC).date() for time in times)
    since = date.fromisoformat(begun) if begun else since
    by = since + timedelta(days=limits.erasure_days)
    days = {"since": since.isoformat(), "refit_by": by.isoformat()}
    return {**found, **days, "due": today >= by, "told": f"{gone}: refit by {by}"}


def _news(counts: dict[str, int], new: About, old: About, *, ordered: bool, due: bool) -> News:
    per_day = usual_per_day = rate = usual_rate = None
    since, labelled = (old.first, old.labelled) if ordered else _usual(old)
    if not ordered:
        kind = "" if labelled else "_positives"  # without labels, what is shown in vain is not in the log
        per_day = counts[f"new{kind}"] / max((new.last - old.last) / DAY_US, 1e-9)
        usual_per_day = counts[f"usual{kind}"] / max((old.last - since) / DAY_US, 1e-9)
    if labelled:
        rate = counts["new_positives"] / max(counts["new"], 1)
        usual_rate = counts["usual_positives"] / max(counts["usual"], 1)
    missing = max(0.0, 1 - counts["kept"] / counts["expected"]) if counts["expected"] else 0.0
    return News(counts["new"], per_day, usual_per_day, rate, usual_rate, missing, due)
