"""Semantic IDs for a file of items, from the frozen models of a finished run; in this process, without Ray.

New items pass the run's own operators, with its settings and its cache, and get SIDs that do not collide with its own.
A SID never changes: the same item id gets the same SID again, even if its content has changed.
"""

from __future__ import annotations

import posixpath
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.semantic_ids.drift import drift
from models.semantic_ids.suffixes import sid_string
from operators.assign_sids import AssignSids, load_quantizer
from operators.base import KEPT, REJECTED, apply, with_outcome
from operators.columns import matrix_column, matrix_of, positions
from operators.gate import decide
from operators.project import Project
from operators.sid_registry import add_sids, added_sids, known_sids, quantizer_digest, reference_embeddings
from storage import blocks, files
from storage.errors import UserError
from storage.run import RunDir
from workflows.engine.definition import Definition, finished_definition
from workflows.engine.registry import stage
from workflows.stages.ingest.items import canonical_items, no_usable, split_items, to_arrow
from workflows.stages.interpret import stage as interpret
from workflows.stages.interpret.given import given_fields
from workflows.stages.quantize.settings import Config as QuantizeConfig

BATCH_ROWS = 64
TEXTS = ("caption", "interests")  # which the run's models can make where they are not given
UNUSED = ("attributes", "embedding", "image_vector", "text_vector")  # columns of a file of new items
VERDICTS = {True: "a refit pays", False: "no refit needed", None: "too early to tell of a refit"}


class Tokenized(NamedTuple):
    """SIDs of a file of items, with the issues of its rows.

    Attributes:
        sids: item_id string; codes fixed_size_list<int32>[L + 1], the suffix last, -1 for none; sid string; known bool,
            whether the item had its SID before. Rows in the order of the file.
        issues: item_id, severity, code, detail of rejected and degraded rows.
        drift: result of `models.semantic_ids.drift.drift` for all items ever added; None without any.
    """

    sids: pa.Table
    issues: pl.DataFrame
    drift: dict[str, Any] | None

    def lines(self) -> list[str]:
        """Returns one line per issue and a summary line."""
        known = pc.sum(self.sids["known"], min_count=0).as_py()
        rejected = self.issues.filter(severity=REJECTED)
        kept = pl.col("item_id").is_in(self.sids["item_id"].to_pylist())
        degraded = self.issues.filter(kept, pl.col("severity") != REJECTED)
        verdict = "nothing was added to this run yet"
        if self.drift is not None:
            verdict = f"{VERDICTS[self.drift['refit']]}: {self.drift['reason']}"
        counts = f"{self.sids.num_rows - known} new, {known} known, {len(rejected)} rejected"
        issues = [f"{severity} {item!r}: {code}, {detail!r}" for item, severity, code, detail in self.issues.rows()]
        return [*issues, f"sid: {counts}, {degraded['item_id'].n_unique()} degraded; {verdict}"]


def tokenize(root: str, file: str, progress: Callable[[int, int], None]) -> Tokenized:
    """Assigns SIDs to all usable items of a file.

    Writes `RUN/sids_added` (see `operators.sid_registry`) and `RUN/metrics/drift.json`.

    Args:
        root: URI of the run directory.
        file: Parquet, CSV or JSON Lines, with the columns of a catalogue's items; media are relative to its folder.
        progress: called with the number of new items done and their total.

    Raises:
        UserError: the run or the file cannot be used, too many new items are degraded, or a code prefix has no suffix
            left; no SID is assigned then.
    """
    run = RunDir(files.absolute(root))
    definition = finished_definition(run)
    load_quantizer.cache_clear()  # the run may have been fitted anew since this process read it
    digest = quantizer_digest(run)
    _check_own_models(run)
    load_quantizer(run.uri("models", "quantizer"))
    items, issues = read_items(file)
    new = items.filter(positions(items["item_id"], known_sids(run)[0]) < 0)
    added: set[str] = set()
    if new.num_rows:
        coded, new_issues = _coded(definition, run, new, posixpath.dirname(files.absolute(file)), progress)
        _check_degraded(definition, file, coded, new_issues)
        issues = pl.concat([issues, new_issues])
        settings: QuantizeConfig = definition.stages.quantize
        always = settings.collisions == "always_suffix"
        added = add_sids(run, coded, quantizer=digest, always=always, max_suffixes=settings.max_suffixes)
    sids = _sids_of(run, items["item_id"], added)
    if sids.num_rows == 0:
        raise UserError(f"{file} has no usable item ({_by_code(issues)}): mend its rows.")
    return Tokenized(sids, issues, _drift(run))


def _check_own_models(run: RunDir) -> None:
    """Raises `UserError` if the vectors of a run's items were given, so that it has no model for those of new ones."""
    given = [name for name in given_fields(files.dataset(run.uri("catalog", "items")).schema) if name not in TEXTS]
    if given:
        raise UserError(
            f"The items of {run.root} came with their {' and '.join(given)}, which no model of the run can make for "
            "new items: add them to the catalogue, with theirs, and run the workflow again."
        )


def read_items(file: str) -> tuple[pa.Table, pl.DataFrame]:
    """Returns the items of a file as `ingest` would write them, without attributes and vectors, and the rejected rows.

    Raises:
        UserError: the file is missing, cannot be read, or has no usable row.
    """
    if not file.endswith(blocks.SUFFIXES):
        raise UserError(f"{file} must be a table of items whose name ends in {', '.join(blocks.SUFFIXES)}.")
    if not files.exists(file):
        raise UserError(f"There is no file {file}: write the new items there, with the columns of a catalogue's items.")
    raw = blocks.scan(file)
    if "item_id" not in raw.rows.columns:
        raise UserError(f"{file} has no column 'item_id': the columns are {', '.join(raw.rows.columns)}.")
    items = canonical_items(raw.rows.drop(UNUSED, strict=False), file).with_row_index("row")
    items, issues = split_items(items, raw.bad, items["item_id"].is_first_distinct())
    if items.is_empty():
        raise no_usable(file, raw.bad, raw.rows.height)
    return to_arrow(items).drop_columns("attributes"), issues


def check_output(output: str | None) -> None:
    """Checks, before any SID is assigned, that `write` supports the format of the output file.

    Raises:
        UserError: the name ends in neither .parquet nor .jsonl.
    """
    if output is not None and not output.endswith((".parquet", ".jsonl")):
        raise UserError(f"{output} must end in .parquet or .jsonl.")


def write(sids: pa.Table, output: str | None) -> None:
    """Writes SIDs to a Parquet or JSON Lines file, atomically, or as JSON Lines to stdout."""
    if output is None:
        pl.DataFrame(sids).write_ndjson(sys.stdout)
    elif output.endswith(".parquet"):
        files.write_part(output, sids)
    else:
        files.write_bytes(output, pl.DataFrame(sids).write_ndjson().encode())


def _coded(
    definition: Definition, run: RunDir, items: pa.Table, folder: str, progress: Callable[[int, int], None]
) -> tuple[pa.Table, pl.DataFrame]:
    """Applies the run's operators to items.

    Returns:
        item_id, embedding and codes (without the suffix) of the items that are kept; issues of all items.
    """
    config: interpret.Config = definition.stages.interpret
    stage("interpret").check(config, run.root)
    # The run's log tells nothing of these items: to the gate they are new and have no events.
    items = items.append_column("gate", decide([interpret.asked(items)], config.caption.gate))
    steps = interpret.steps(config, folder, interpret.cache_uri(config, run.root), given_fields(items.schema))
    models = (Project(run.uri("models", "projector")), AssignSids(run.uri("models", "quantizer")))
    operators = [*(step.operator for step in steps), *models]
    for operator in operators:
        operator.setup()
    done = []
    for start in range(0, items.num_rows, BATCH_ROWS):
        batch = with_outcome(items.slice(start, BATCH_ROWS))
        for operator in operators:
            batch = apply(operator, batch)
        done.append(batch.select(["item_id", "embedding", "codes", "outcome", "issues"]))
        progress(min(start + BATCH_ROWS, items.num_rows), items.num_rows)
    table = pa.concat_tables(done)
    issues = pl.DataFrame(table.select(["item_id", "issues"])).filter(pl.col("issues").list.len() > 0)
    kept = table.filter(pc.equal(table["outcome"], KEPT))
    return kept.select(["item_id", "embedding", "codes"]), issues.explode("issues").unnest("issues")


def _check_degraded(definition: Definition, file: str, coded: pa.Table, issues: pl.DataFrame) -> None:
    """Raises `UserError` if too many items are degraded: an outage must not decide permanent SIDs."""
    degraded = issues.filter(pl.col("item_id").is_in(coded["item_id"].to_pylist()))
    limit = definition.stages.interpret.max_degraded_share
    count = degraded["item_id"].n_unique()
    if count > limit * coded.num_rows:
        raise UserError(
            f"{count} of {coded.num_rows} new items of {file} lack a part ({_by_code(degraded)}), more than the run's "
            f"stages.interpret.max_degraded_share = {limit} allows: mend what is missing, or leave the media out."
        )


def _sids_of(run: RunDir, item_ids: pa.ChunkedArray, added: set[str]) -> pa.Table:
    """Returns the table of `Tokenized` for the items that have a SID."""
    ids, codes = known_sids(run)
    at = positions(item_ids, ids)
    with_sid, codes = item_ids.filter(at >= 0).to_pylist(), codes[at[at >= 0]]
    return pa.table(
        {
            "item_id": pa.array(with_sid, pa.string()),
            "codes": matrix_column(codes),
            "sid": pa.array([sid_string(row) for row in codes.tolist()], pa.string()),
            "known": pa.array([item_id not in added for item_id in with_sid], pa.bool_()),
        }
    )


def _drift(run: RunDir) -> dict[str, Any] | None:
    """Measures how well the quantizer fits all added items, compared with those that it was fitted on."""
    parts = [matrix_of(part["embedding"]) for part in added_sids(run)]
    if not parts:
        return None
    old, new = reference_embeddings(run), torch.tensor(np.concatenate(parts))
    comparison = {"old_items": len(old), "new_items": len(new)}
    comparison |= drift(load_quantizer(run.uri("models", "quantizer")), old, new)
    run.write_json(comparison, "metrics", "drift.json")
    return comparison


def _by_code(issues: pl.DataFrame) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(Counter(issues["code"]).items()))
