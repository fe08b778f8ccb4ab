"""Fetch, embed and caption every item in one stream of actor pools; resumable by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from models.captioner import Tagger
from models.encoders import IMAGE_WIDTH, TEXT_WIDTH
from operators.base import KEPT, REJECTED
from operators.caption import Caption
from operators.embed import EmbedImages, EmbedTexts
from operators.media import FetchMedia
from storage import files
from storage.limits import Limits
from workflows import streams
from workflows.compact import write_in_hash_order
from workflows.pools import Group, Node, Pool, Step, plan
from workflows.rejects import rejects_table
from workflows.stage import Context, Result, StageConfig

VERSION = 1
SEEDED = False
INPUTS = ("ingest",)
OPERATORS = (FetchMedia, EmbedImages, Caption, EmbedTexts)

ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("caption", pa.string()),
        ("image_vector", pa.list_(pa.float32(), IMAGE_WIDTH)),
        ("text_vector", pa.list_(pa.float32(), TEXT_WIDTH)),
    ]
)


class LimitsConfig(BaseModel):
    """What one medium may cost; see `storage.limits.Limits`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(Limits.max_bytes, ge=1)
    max_pixels: int = Field(Limits.max_pixels, ge=1)
    max_seconds: float = Field(Limits.max_seconds, gt=0)
    max_side: int = Field(Limits.max_side, ge=32)
    frames: int = Field(Limits.frames, ge=1)
    decode_seconds: float = Field(Limits.decode_seconds, gt=0)


class Section(BaseModel):
    """Settings of one operator of the stream; without a pool it runs beside its neighbours, see `pools.plan`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: Pool | None = None


class Config(StageConfig):
    """Settings of interpret.

    Attributes:
        max_media: media used per item.
        limits: what one medium may cost.
        max_reject_share: share of rejected rows past which the run fails.
        commit_rows: rows that commit together; a killed run loses at most the blocks in flight.
        no_progress_timeout_s: the stream ends with an error after standing still for so long.
        fetch, image_embedding, caption, text_embedding: settings of each operator.
    """

    max_media: int = Field(1, ge=1)
    limits: LimitsConfig = LimitsConfig()
    max_reject_share: float = Field(0.1, ge=0, le=1)
    commit_rows: int = Field(64, ge=1)
    no_progress_timeout_s: float = Field(300.0, gt=0)
    fetch: Section = Section()
    image_embedding: Section = Section()
    caption: Section = Section()
    text_embedding: Section = Section()

    resources: ClassVar[frozenset[str]] = frozenset({"commit_rows", "no_progress_timeout_s", "max_reject_share"})

    def identity(self) -> dict[str, Any]:
        """Pools change no result."""
        settings = super().identity()
        return {key: _without_pool(value) for key, value in settings.items()}


def _without_pool(value: Any) -> Any:
    return {key: inner for key, inner in value.items() if key != "pool"} if isinstance(value, dict) else value


def steps(config: Config, root: str) -> list[Step]:
    """The stream's operators, in order.

    The picture passes the network once: the tagger takes its labels from the image vector, so it comes second.
    """
    fetch = FetchMedia(root=root, max_media=config.max_media, limits=Limits(**config.limits.model_dump()))
    return [
        Step("fetch", fetch, config.fetch.pool),
        Step("image_embedding", EmbedImages(), config.image_embedding.pool),
        Step("caption", Caption(Tagger()), config.caption.pool),
        Step("text_embedding", EmbedTexts(), config.text_embedding.pool),
    ]


def groups(config: Config, root: str, nodes: Sequence[Node], *, rows: int) -> list[Group]:
    """The operators in their pools.

    Raises:
        UnschedulableError: a pool does not fit onto the nodes.
    """
    return plan(steps(config, root), nodes, blocks=-(-rows // config.commit_rows))


def run(config: Config, context: Context) -> Result:
    """Write `items` and `rejects/interpret`."""
    source = context.run.uri("catalog", "items")
    total = files.dataset(source).count_rows()
    folder = context.run.uri("checkpoints", "interpret")
    sink = files.join(folder, context.fingerprint)
    _forget_other_attempts(folder, context.fingerprint)
    reused = streams.committed_rows(sink)
    if reused:
        context.log(f"interpret: {reused} of {total} rows are done already and reused, {total - reused} to compute")
    if reused < total:
        streams.stream(
            source,
            groups(config, context.catalog, context.nodes, rows=total - reused),
            sink=sink,
            columns=ITEMS.names,
            commit_rows=config.commit_rows,
            no_progress_timeout_s=config.no_progress_timeout_s,
            on_rows=lambda done: context.progress(done, total),
        )
    kept = _compact(sink, total, context)
    rejected, degraded, codes = _write_rejects(sink, context)
    metrics = {"reused": reused, "issues": codes}
    return Result(rows_in=total, rows_out=kept, rejected=rejected, degraded=degraded, metrics=metrics)


def _forget_other_attempts(folder: str, fingerprint: str) -> None:
    fs, path = files.filesystem(folder)
    if fs.exists(path):
        for name in fs.ls(path, detail=False):
            if name.rstrip("/").rsplit("/", 1)[-1] != fingerprint:
                fs.rm(name, recursive=True)


def _compact(sink: str, total: int, context: Context) -> int:
    """Gather the kept rows under `items`; return their number."""
    batches = streams.outcome_batches(sink, KEPT, ITEMS.names)
    return write_in_hash_order(batches, context.run.uri("items"), total, ITEMS)


def _write_rejects(sink: str, context: Context) -> tuple[int, int, dict[str, int]]:
    """Write `rejects/interpret`; return rejected rows, degraded rows, and the number of issues by code."""
    found, rejected, degraded = [], 0, 0
    for outcome in (KEPT, REJECTED):
        for batch in streams.outcome_batches(sink, outcome, ["item_id", "issues"]):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)  # noqa: S101 - for the type checker
            with_issues = frame.filter(pl.col("issues").list.len() > 0)
            rejected += frame.height if outcome == REJECTED else 0
            degraded += with_issues.height if outcome == KEPT else 0
            found.append(with_issues.explode("issues").unnest("issues"))
    nothing = pl.DataFrame(schema=dict.fromkeys(("item_id", "severity", "code", "detail"), pl.String))
    issues = pl.concat([nothing, *found])
    context.run.write_table(rejects_table(issues.sort("item_id", "code"), stage="interpret"), "rejects", "interpret")
    return rejected, degraded, dict(sorted(Counter(issues["code"]).items()))
