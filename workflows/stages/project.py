"""Fit the projection of raw vectors once, freeze it, and write every item's embedding."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pydantic import Field

from models.common.settings import Settings
from models.embedding.projector import Blocks, Projector, fit_projector
from operators.project import BLOCKS, Project, blocks_of
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from workflows.engine.stage import Context, ContinuingConfig, Result, Stage

BATCH_ROWS = 8_192


class Weights(Settings):
    """How much each modality counts; the variance of its block is the square."""

    image: float = Field(1.0, ge=0)
    text: float = Field(1.0, ge=0)


class Config(ContinuingConfig):
    """Settings of project; an earlier run gives its projection over, so that embeddings stay comparable.

    Attributes:
        width: dimensions of the embedding.
        weights: of the modalities.
    """

    width: int = Field(128, ge=1)
    weights: Weights = Weights()


class ProjectStage(Stage[Config]):
    """Fit the projection of raw vectors once, freeze it, and write every item's embedding."""

    config_type = Config
    version = 2
    seeded = False
    reads = ("interpret",)
    operators = (Project,)

    def check(self, config: Config, root: str) -> None:
        """Finds an earlier run without a projection."""
        if config.previous is not None:
            earlier = RunDir(config.previous)
            if not has_embeddings(earlier):
                Projector.load(earlier.uri("models", "projector"))

    def run(self, config: Config, context: Context) -> Result:
        """Writes `models/projector` and `embeddings` (item_id, embedding); embeddings that are given as they are."""
        items, target = files.dataset(context.run.uri("items")), context.run.uri("embeddings")
        artifact = context.run.uri("models", "projector")
        if has_embeddings(context.run):
            files.remove(artifact)
            given = files.batches(context.run.uri("items"), ["item_id", "embedding"], BATCH_ROWS)
            written = files.write_parts(target, (pa.Table.from_batches([batch]) for batch in given))
            width = items.schema.field("embedding").type.list_size
            return Result(rows_in=written, rows_out=written, metrics={"width": width, "given": True})

        def batches() -> Iterator[pa.RecordBatch]:
            return files.batches(context.run.uri("items"), ["item_id", *BLOCKS], BATCH_ROWS)

        def blocks() -> Iterator[list[Blocks]]:
            return (blocks_of(batch) for batch in batches())

        if config.previous is not None:
            projector = taken_over(config.previous, context.run)
        else:
            weights = {"image_vector": config.weights.image, "text_vector": config.weights.text}
            projector = fit_projector(blocks, weights, config.width)
        projector.save(artifact)
        project = Project(artifact)
        parts = (project(pa.Table.from_batches([batch])).select(["item_id", "embedding"]) for batch in batches())
        written = files.write_parts(target, parts)
        metrics = {"width": projector.components.shape[1], "explained_variance": round(projector.explained, 4)}
        return Result(rows_in=items.count_rows(), rows_out=written, metrics=metrics)


def has_embeddings(run: RunDir) -> bool:
    """Tells whether the items of a run came with their embeddings, so that nothing is projected."""
    return "embedding" in files.dataset(run.uri("items")).schema.names


def taken_over(previous: str, run: RunDir) -> Projector:
    """Returns the projection of an earlier run.

    Raises:
        UserError: its vectors come from other models.
    """
    projector = Projector.load(RunDir(previous).uri("models", "projector"))
    schema = files.dataset(run.uri("items")).schema
    for name, mean in zip(projector.names, projector.means, strict=True):
        width = schema.field(name).type.list_size
        if width != len(mean):
            raise UserError(
                f"The projection of {previous} takes a {name} of width {len(mean)}, and this run's has {width}: use "
                "the same models in interpret, or leave previous out."
            )
    return projector
