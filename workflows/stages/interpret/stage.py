"""Fetch, embed, caption and mine every item in one stream of actor pools; resumable by row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, PositiveFloat, PositiveInt

from operators.base import KEPT, REJECTED, Operator, set_columns
from operators.cached import CACHED, COMPUTED, EMPTY, REFUSED, CachedOperator
from operators.gate import activity, decide
from operators.given import Given
from operators.interpreter import save_interpreter
from operators.log.partitions import About, moments, read_about, read_events
from operators.log.split import quantile
from operators.media.fetch import FetchMedia
from storage import files
from storage.errors import UserError
from storage.hashing import fingerprint, hash_ids
from storage.identity import identity
from storage.manifest import StageEntry, require_manifest
from storage.mapped import BATCH_ROWS
from storage.media.limits import Limits
from storage.media.sources import Sources
from storage.run import RunDir
from storage.sorting import write_in_hash_order
from workflows.catalogs.canonical import ITEMS
from workflows.catalogs.survey import Survey
from workflows.distributed import streams
from workflows.distributed.pools import Group, Node, Step, plan
from workflows.engine.stage import SMALL_CATALOGUE, Context, ContinuingConfig, Result, Stage
from workflows.stages.interpret.given import TYPES, copy_items, given_fields, nothing_to_compute
from workflows.stages.interpret.reused import Reused
from workflows.stages.interpret.settings import CAPTIONS, IMAGES, INTERESTS, TEXTS, Captions, ModelSection, Section

KEPT_COLUMNS = ("item_id", "title", "description", "attributes")
JUDGED = ("item_id", "title", "description", "media", "caption")  # what the gate reads of an item
CAPTIONS_FROM = b"captions"  # in the metadata of `items`: the folder of their settings in a cache
CACHE = "_cache"  # beside the run directory; no workflow can have this name


class Fetch(Section):
    """Where media may lie, and how much of them is used.

    Attributes:
        max_media: media used per item.
        limits: what one medium may cost.
        roots: further folders that media may lie in, beside the catalogue's own; absolute paths or URIs.
        http: whether http and https URLs are fetched, from public addresses alone.
        allow_private: `host:port` pairs that are fetched though their addresses are private.
    """

    max_media: PositiveInt = 1
    limits: Limits = Limits()
    roots: tuple[str, ...] = ()
    http: bool = False
    allow_private: tuple[str, ...] = ()

    def operator(self, root: str, given: tuple[str, ...]) -> Operator:
        """Makes the operator for the catalogue at `root`, whose items come with the columns `given`."""
        sources = Sources(self.roots, self.http, self.allow_private)
        return FetchMedia(root=root, max_media=self.max_media, limits=self.limits, sources=sources, given=given)


class Config(ContinuingConfig):
    """Settings of interpret; of an earlier run, items that have not changed are taken over.

    Attributes:
        fetch, image_embedding, caption, interests, text_embedding: settings of the stream's operators, by default those
            of the default backends; see `workflows.stages.interpret.settings`.
        cache: where results are kept for later runs: true for the folder `_cache` beside the run directory, false for
            nowhere, or a URI.
        max_reject_share: share of rejected rows past which the run fails.
        max_degraded_share: likewise of rows that are kept without a part, since a store or an endpoint that is down
            costs every item its picture or caption, and none of them its place.
        commit_rows: rows that commit together; a killed run loses at most the blocks in flight.
        no_progress_timeout_s: the stream ends with an error after standing still for so long.
    """

    fetch: Fetch = Fetch()
    image_embedding: Annotated[ModelSection, IMAGES] = Field({}, validate_default=True)
    caption: Annotated[Captions, CAPTIONS] = Field({}, validate_default=True)
    interests: Annotated[ModelSection, INTERESTS] = Field({}, validate_default=True)
    text_embedding: Annotated[ModelSection, TEXTS] = Field({}, validate_default=True)
    cache: bool | str = True
    max_reject_share: float = Field(0.1, ge=0, le=1)
    max_degraded_share: float = Field(0.5, ge=0, le=1)
    commit_rows: PositiveInt = 64
    no_progress_timeout_s: PositiveFloat = 900.0

    resources: ClassVar[frozenset[str]] = frozenset(
        {"cache", "commit_rows", "no_progress_timeout_s", "max_reject_share", "max_degraded_share"}
    )

    def identity(self) -> dict[str, Any]:
        """Returns the identities of the operators, wherever the catalogue lies, and the gate."""
        operators = [identity(step.operator) for step in steps(self, root="", cache=None)]
        return {"operators": operators, "gate": asdict(self.caption.gate)}


def steps(config: Config, root: str, cache: str | None, given: Collection[str] = ()) -> list[Step]:
    """Returns the stream's operators, in order.

    A picture passes the default network once: the tagger takes its labels from the image vector, so it comes second.
    A given column of vectors takes the place of its operator, for vectors of two models have nothing in common; of
    captions and interests those are computed that are NULL.
    """
    local = config.image_embedding.backend == "local" and "image_vector" not in given
    keywords = config.interests.backend == "keywords"
    caption = CachedOperator(config.caption.operator(vector_is_local=local), "caption", cache, gate="gate")
    images = CachedOperator(config.image_embedding.operator(), "image_embedding", cache)
    interests = CachedOperator(config.interests.operator(), "interests", None if keywords else cache)
    texts = CachedOperator(config.text_embedding.operator(), "text_embedding", cache)
    made = [
        Step("fetch", config.fetch.operator(root, tuple(given)), config.fetch.pool),
        Step("image_embedding", images, config.image_embedding.pool, config.image_embedding.place),
        Step("caption", caption, config.caption.pool, config.caption.place),
        Step("interests", interests, config.interests.pool, config.interests.place),
        Step("text_embedding", texts, config.text_embedding.pool, config.text_embedding.place),
    ]
    filled = {"caption", "interests"} & set(given)
    replaced = {name.replace("vector", "embedding") for name in given if name not in filled}
    left = [step for step in made if step.name not in replaced]
    return [replace(step, operator=Given(step.operator, step.name)) if step.name in filled else step for step in left]


def items_schema(config: Config | None, given: Mapping[str, pa.Field] = MappingProxyType({})) -> pa.Schema:
    """Returns the schema of `items`: texts and attributes, what is given, and what the operators add.

    Args:
        config: of the operators; None where none works.
        given: columns of the catalogue that take the place of a model.
    """
    operators = () if config is None else [step.operator for step in steps(config, "", None, given)[1:]]
    types = TYPES | {field.name: field.type for operator in operators for field in operator.output_schema}
    types |= {name: field.type for name, field in given.items()}
    return pa.schema([*(ITEMS.field(name) for name in KEPT_COLUMNS), *types.items()])


class InterpretStage(Stage[Config]):
    """Fetch, embed, caption and mine every item in one stream of actor pools; resumable by row."""

    config_type = Config
    version = 5
    seeded = False
    reads = ("ingest",)

    def check(self, config: Config, root: str) -> None:
        """Finds what is wrong with models and cache on this machine before anything runs.

        Raises:
            UserError: one of them cannot work.
        """
        for section in (config.image_embedding, config.caption, config.interests, config.text_embedding):
            section.check()
        cache = cache_uri(config, root)
        if cache is not None and not files.writable(cache):
            raise UserError(f"The cache {cache} cannot be written: give stages.interpret.cache another URI, or false.")

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds a catalogue in which too many items have nothing to interpret.

        Raises:
            UserError: more of them would be rejected than the settings allow.
        """
        given = catalog.filled["embedding"]
        if 0 < given < catalog.items:
            raise UserError(
                f"{catalog.items - given:,} of {catalog.items:,} items of {catalog.uri} have no embedding: give "
                "every item one, or leave the column out."
            )
        limit = config.max_reject_share if catalog.bare < catalog.items else 0
        if catalog.bare > limit * catalog.items:
            raise UserError(
                f"{catalog.bare:,} of {catalog.items:,} items have no title, no description and no medium: give them "
                "one" + (", or raise stages.interpret.max_reject_share." if limit else ".")
            )
        return []

    def groups(self, config: Config, root: str, nodes: Sequence[Node], *, rows: int) -> list[Group]:
        """Returns the operators in their pools.

        Raises:
            UnschedulableError: a pool does not fit onto the nodes.
        """
        return plan(steps(config, root, cache=None), nodes, blocks=-(-rows // config.commit_rows))

    def run(self, config: Config, context: Context) -> Result:
        """Writes `items` and `rejects/interpret`."""
        given = given_fields(files.dataset(context.run.uri("catalog", "items")).schema)
        files.remove(context.run.uri("models", "interpreter"))  # of a catalogue that brought no vectors
        if nothing_to_compute(context.run):
            copy = partial(copy_items, context.run, items_schema(None, given))
            few = files.dataset(context.run.uri("catalog", "items")).count_rows() <= SMALL_CATALOGUE
            name = f"interpret/{context.fingerprint}/copied"
            ((total, kept, lost),) = context.pieces(copy, ["items"], name=name, here=few)
            return Result(rows_in=total, rows_out=kept, rejected=lost, metrics={"given": list(given)})
        folder = context.run.uri("checkpoints", "interpret")
        sink = files.join(folder, context.fingerprint)
        schema = items_schema(config, given)
        recipe = recipe_of(config, schema)
        before = earlier_items(config, recipe)
        streamed, taken = write_source(config, context, files.join(sink, "source"), before)
        total, reused = streamed + len(taken), len(taken) + streams.committed_rows(sink)
        if reused:
            context.log(f"interpret: {reused} of {total} rows are done already and reused, {total - reused} to compute")
        operators = steps(config, context.catalog, cache_uri(config, context.run.root), given)
        stream_rest(config, context, operators, sink, [*schema.names, "work"], streamed)
        batches = streams.outcome_batches(sink, KEPT, schema.names)
        batches = chain(batches, before.batches(taken, schema.names)) if before is not None else batches
        made_by = schema.with_metadata({CAPTIONS_FROM: captions_folder(config, given)})
        kept = write_in_hash_order(batches, context.run.uri("items"), total, made_by)
        rejected, degraded, codes = streams.write_rejects(sink, context.run, "interpret", streamed)
        if not set(given) - {"caption", "interests"}:  # else no model of the run makes the vectors of a new item
            made = (step.operator for step in steps(config, context.catalog, None))
            save_interpreter(context.run, [one.operator if isinstance(one, CachedOperator) else one for one in made])
        metrics = {"reused": reused, "issues": codes, "recipe": recipe, **_work(sink)}
        return Result(rows_in=total, rows_out=kept, rejected=rejected, degraded=degraded, metrics=metrics)


def stream_rest(
    config: Config, context: Context, operators: Sequence[Step], sink: str, columns: list[str], total: int
) -> None:
    """Streams rows through operators, but for those that an earlier attempt has committed; see `streams.stream`.

    Args:
        config: whose limits count.
        context: of the stage.
        operators: in order.
        sink: folder of the stream, with its rows in the folder `source`.
        columns: to write.
        total: number of rows.
    """
    if (left := total - streams.committed_rows(sink)) > 0:
        if context.connect is not None:
            context.connect()
        streams.stream(
            files.join(sink, "source"),
            plan(operators, context.nodes, blocks=-(-left // config.commit_rows)),
            sink=sink,
            columns=columns,
            commit_rows=config.commit_rows,
            no_progress_timeout_s=config.no_progress_timeout_s,
            on_rows=lambda done: context.progress(done, total),
        )


def cache_uri(config: Config, root: str) -> str | None:
    """Returns where the results of a run at `root` are kept for later ones, or None."""
    if isinstance(config.cache, str):
        return files.absolute(config.cache)
    scheme, separator, path = root.rstrip("/").rpartition("://")
    above, slash, _ = path.rpartition("/")
    return f"{scheme}{separator}{above if slash else path}/{CACHE}" if config.cache else None


def recipe_of(config: Config, schema: pa.Schema) -> str:
    """Returns what tells apart how items are interpreted, wherever their media lie."""
    fetch, *others = config.identity()["operators"]
    made = [InterpretStage.version, {name: fetch[name] for name in fetch if name != "sources"}, *others, str(schema)]
    return fingerprint(json.dumps(made, sort_keys=True))


def earlier_items(config: Config, recipe: str) -> Reused | None:
    """Returns the items of the run before; None without one, or where it has interpreted them in another way."""
    if config.previous is None:
        return None
    entry = require_manifest(config.previous).stages.get("interpret", StageEntry())
    return Reused(RunDir(config.previous)) if entry.metrics.get("recipe") == recipe else None


def write_source(config: Config, context: Context, target: str, before: Reused | None = None) -> tuple[int, np.ndarray]:
    """Writes the catalogue's items, each with the caption's gate, batch by batch, but for those that are taken over.

    Returns:
        The number of items that are written, and the hashes of the ids of the others, int64 [M], ascending.
    """
    uri = context.run.uri("catalog", "items")
    names = files.dataset(uri).schema.names
    gate, cache = config.caption.gate, cache_uri(config, context.run.root)
    folder = captions_folder(config, names)
    seen, known = None, list[str]()
    about = read_about(context.run)
    if about is not None and (gate.popular_from, gate.new_within_days, gate.budget) != (None, None, None):
        seen = activity(_known_events(context.run, about, gate.log_share))
    if gate.budget is not None and before is not None:
        known = [name for items in _tables(uri, names) for name in before.captioned(items, context.catalog)]
    elif gate.budget is not None and cache is not None and files.exists(files.join(cache, folder)):
        known = _captioned(context.run.root, folder) or _captioned(config.previous, folder)
    others = (step.operator for step in steps(config, "", None, names) if step.name != "caption")
    look = any("frames" in operator.input_columns for operator in others)
    taken = list[np.ndarray]()
    gates = decide(map(asked, _tables(uri, [name for name in names if name in JUDGED])), gate, seen, known)

    def gated() -> Iterator[pa.Table]:
        start = 0
        for items in _tables(uri, names):
            gate = gates.slice(start, items.num_rows)
            start += items.num_rows
            seen_by = items if look else asked(items)
            known = np.zeros(items.num_rows, bool) if before is None else before.among(items, context.catalog, gate)
            taken.append(hash_ids(items["item_id"].filter(pa.array(known))))
            yield seen_by.append_column("gate", gate).filter(pa.array(~known))

    return files.write_parts(target, gated()), np.sort(np.concatenate(taken))


def _tables(uri: str, names: list[str]) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in files.batches(uri, names, BATCH_ROWS))


def asked(items: pa.Table) -> pa.Table:
    """Returns items without the media of those whose caption is given."""
    if "caption" not in items.column_names:
        return items
    nothing = pa.scalar(None, items.schema.field("media").type)
    return set_columns(items, {"media": pc.if_else(items["caption"].is_valid(), nothing, items["media"])})


def _known_events(run: RunDir, about: About, share: float) -> Iterator[pl.DataFrame]:
    """Yields item and time of the first share of a log, partition by partition."""
    until = quantile(partial(moments, run, about), about.events, share)
    for number in range(about.partitions):
        events = pl.DataFrame(read_events(run, number, ["item", "timestamp"]))
        yield events.filter(pl.col("timestamp").dt.epoch("us") <= until)


def _captioned(root: str | None, folder: str) -> list[str]:
    """Returns the ids of a run's items that have a caption; none where other settings made them, or nothing yet."""
    if root is None or not files.exists(RunDir(root).uri("items")):
        return []
    about = files.dataset(RunDir(root).uri("items")).schema.metadata or {}
    if about.get(CAPTIONS_FROM) != folder.encode():
        return []
    items = RunDir(root).read_table("items", columns=["item_id", "caption"])
    return list(items.filter(items["caption"].is_valid())["item_id"].to_pylist())


def captions_folder(config: Config, names: Collection[str]) -> str:
    """Returns what tells apart the settings of captions of a catalogue with these columns: their folder in a cache."""
    found = steps(config, "", None, {"image_vector"} & set(names))
    caption = next(step.operator for step in found if step.name == "caption")
    return cast("CachedOperator", caption).folder


def _work(sink: str) -> dict[str, Any]:
    """Counts what every operator behind a gate and a cache did, over all committed rows.

    Returns:
        Per operator the rows that were `computed`, `cached`, `refused` and `empty`; `trigger_rate`, the share of rows
        that it was asked about and did not leave empty; `cache_hit_rate`, the share of these that it did not have to
        compute; `seconds_per_row`, of those that it did.
    """
    frames = [
        pl.DataFrame(batch)
        .explode("work")
        .unnest("work")
        .group_by("operator", "source")
        .agg(rows=pl.len(), seconds=pl.col("seconds").sum())
        for outcome in (KEPT, REJECTED)
        for batch in streams.outcome_batches(sink, outcome, ["work"])
    ]
    nothing = pl.DataFrame(
        schema={"operator": pl.String, "source": pl.String, "rows": pl.UInt32, "seconds": pl.Float64}
    )
    total = pl.concat([nothing, *frames]).drop_nulls("operator").group_by("operator", "source").sum()
    counts: dict[str, Any] = {}
    for (operator,), part in total.sort("operator").group_by("operator", maintain_order=True):
        rows = dict.fromkeys((COMPUTED, CACHED, REFUSED, EMPTY), 0) | dict(part.select("source", "rows").iter_rows())
        triggered = rows[COMPUTED] + rows[CACHED]
        counts[str(operator)] = {
            **rows,
            "trigger_rate": round(triggered / max(sum(rows.values()), 1), 4),
            "cache_hit_rate": round(rows[CACHED] / max(triggered, 1), 4),
            "seconds_per_row": round(part["seconds"].sum() / max(rows[COMPUTED], 1), 5),
        }
    return counts
