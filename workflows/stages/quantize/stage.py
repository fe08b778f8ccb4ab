"""Fit a quantizer on all embeddings, or take one over, and give every item its semantic ID."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from models.semantic_ids.collisions import reassign_last_level
from models.semantic_ids.prefixes import number_rows
from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, Quantizer
from models.semantic_ids.rqvae import Schedule
from operators.columns import matrix_column, matrix_of
from operators.log.collaborative import collaborative_vectors
from operators.sid_registry import give_sids, inherited_sids
from storage import files
from storage.artifacts import model_digest
from storage.errors import UserError
from storage.hashing import content_order, hash_order, hash_rows
from storage.run import RunDir
from workflows.engine.frozen import check_frozen, frozen_identity
from workflows.engine.stage import Context, Resources, Result, Stage, StageConfig
from workflows.stages.quantize import scores

COLLABORATIVE = "rqvae+collaborative"
PRESETS = {"trialigngr": (4096, 2048, 1024)}  # codebook sizes of arXiv 2605.05249
BATCH_ROWS = 8_192


def _preset(value: object) -> object:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"{value!r} is no preset: write a list of numbers, or {', '.join(PRESETS)}")
        return PRESETS[value]
    return value


class Collaborative(BaseModel):
    """The pull of `rqvae+collaborative` towards what users chose in the training part of the log.

    Attributes:
        weight: of the alignment in the loss.
        width: of the item vectors that the log is factored into.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: PositiveFloat = 1.0
    width: PositiveInt = 64


class Config(StageConfig):
    """Settings of quantize.

    Attributes:
        method: `rqvae`, `rqkmeans`, or `rqvae+collaborative`.
        codebook_sizes: codewords per level, at most 25 levels, or `trialigngr` for that paper's. Codebooks far larger
            than the catalogue leave codes unused.
        latent_dim, hidden_dims: of rqvae: width of the codewords (null: that of the embeddings) and of the layers
            before them.
        commitment: of rqvae: weight of the pull of latents towards their codewords (β).
        steps, batch_size, learning_rate, reset_until, mixup: of rqvae, see `models.semantic_ids.rqvae.Schedule`.
        balanced: of rqkmeans: give all codewords of a level about equally many items.
        collaborative: of rqvae+collaborative.
        collisions: what makes SIDs unique. `suffix` gives one to items that share their codes, `always_suffix` to all;
            `sinkhorn` re-assigns the last code of items that share all, and gives suffixes to what is left.
        max_suffixes: upper bound of a suffix, exclusive.
        fit_rows: rows that the fit holds in memory; of a larger catalogue a sample.
        frozen: a finished run whose quantizer and SIDs are taken over: its items keep theirs, new ones get theirs
            beside them, with suffixes also where `collisions` is `sinkhorn`; settings of the fit then mean nothing.
            Take its projection over, too (`project: {frozen: RUN}`).
        workers, cpus_per_worker, use_gpu: processes of the fit and what each of them gets.
        checkpoint_s: seconds between two states that a killed fit can go on from.
    """

    resources: ClassVar[frozenset[str]] = frozenset({"workers", "cpus_per_worker", "use_gpu", "checkpoint_s"})

    method: Literal["rqvae", "rqkmeans", "rqvae+collaborative"] = "rqvae"
    codebook_sizes: Annotated[tuple[PositiveInt, ...], BeforeValidator(_preset)] = Field(
        (256, 256, 256), min_length=1, max_length=25
    )
    latent_dim: PositiveInt | None = None
    hidden_dims: tuple[PositiveInt, ...] = (128,)
    commitment: PositiveFloat = Schedule.commitment
    steps: PositiveInt = Schedule.steps
    batch_size: PositiveInt = Schedule.batch_size
    learning_rate: PositiveFloat = Schedule.learning_rate
    reset_until: float = Field(Schedule.reset_until, ge=0, le=1)
    mixup: bool = Schedule.mixup
    balanced: bool = False
    collaborative: Collaborative = Collaborative()
    collisions: Literal["suffix", "always_suffix", "sinkhorn"] = "suffix"
    max_suffixes: PositiveInt = 256
    fit_rows: PositiveInt = 1_000_000
    frozen: str | None = None
    workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1
    use_gpu: bool = False
    checkpoint_s: float = Field(30.0, ge=0)

    @model_validator(mode="after")
    def _fits_the_method(self) -> Config:
        if self.balanced and self.method != RQKMEANS:
            raise ValueError("balanced is for method rqkmeans: leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings, and what stands behind `frozen` at the moment."""
        return {**super().identity(), "frozen": frozen_identity(self.frozen, "models/quantizer", "sids")}

    def reads_split(self) -> bool:
        """Only a fit that goes by the log does."""
        return self.method == COLLABORATIVE and self.frozen is None


class Coded(NamedTuple):
    """Every item with its codes, in one order."""

    positions: np.ndarray  # int64 [N], rows in `embeddings`
    item_ids: list[str]
    codes: np.ndarray  # int32 [N, L]
    contents: np.ndarray  # uint64 [N], hashes of the embeddings


class QuantizeStage(Stage[Config]):
    """Fit a quantizer on all embeddings, or take one over, and give every item its semantic ID."""

    config_type = Config
    version = 2
    reads = ("project",)

    def check(self, config: Config, root: str) -> None:
        """Find a run to take over that is none, or is this one."""
        if config.frozen is not None:
            check_frozen(config.frozen, root, "quantize")
            Quantizer.load(RunDir(config.frozen).uri("models", "quantizer"))

    def resources(self, config: Config) -> Resources | None:
        """Count the workers of the fit; a quantizer that is taken over needs none."""
        if config.frozen:
            return None
        return Resources(config.workers * config.cpus_per_worker, float(config.workers if config.use_gpu else 0))

    def run(self, config: Config, context: Context) -> Result:
        """Write models/quantizer, sids (item_id, codes with the suffix), metrics/quantize.json and metrics/map."""
        run, rows = context.run, files.dataset(context.run.uri("embeddings")).count_rows()
        if rows == 0:
            raise UserError("There are no embeddings to quantize: give the catalogue at least one usable item.")
        history = take_over(config.frozen, run) if config.frozen else fit(config, context, rows)
        quantizer, coded, sids = write_sids(config, run)
        found = scores.judge(run, quantizer, item_ids=coded.item_ids, nearest=coded.codes, sids=sids, seed=context.seed)
        if config.frozen and (new := scores.drift_since(run, quantizer, coded.item_ids, RunDir(config.frozen))):
            found["drift"] = new
            context.log(f"quantize: {new['reason']}")
        run.write_json({**found, "history": history}, "metrics", "quantize.json")
        metrics = found["scorecard"]
        context.log(
            f"quantize: codebooks used {', '.join(f'{share:.0%}' for share in metrics['usage'])}; "
            f"{metrics['collision_share']:.1%} of the items share their codes before deduplication; "
            f"reconstruction cosine {metrics['reconstruction_cosine'][-1]:.3f}"
        )
        return Result(rows_in=rows, rows_out=len(coded.item_ids), metrics=metrics)


def fit(config: Config, context: Context, rows: int) -> list[dict[str, Any]]:
    """Fit the quantizer and write its artifact; give the curve of the fit."""
    from workflows.stages.quantize import fitting

    width = files.dataset(context.run.uri("embeddings")).schema.field("embedding").type.list_size
    learned = config.method != RQKMEANS
    architecture = Architecture(
        method=RQVAE if learned else RQKMEANS,
        input_dim=width,
        codebook_sizes=config.codebook_sizes,
        latent_dim=(config.latent_dim or width) if learned else width,
        hidden_dims=config.hidden_dims if learned else (),
    )
    schedule = Schedule(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        commitment=config.commitment,
        reset_until=config.reset_until,
        mixup=config.mixup,
        alignment=config.collaborative.weight if config.method == COLLABORATIVE else 0.0,
    )
    signals = None
    if config.method == COLLABORATIVE:
        aligned = config.collaborative
        signals = collaborative_vectors(context.run, context.split, width=aligned.width, seed=context.seed)
    return fitting.fit(
        context,
        architecture,
        schedule,
        share=min(1.0, config.fit_rows / rows),
        balanced=config.balanced,
        signals=signals,
        workers=config.workers,
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.use_gpu,
        checkpoint_s=config.checkpoint_s,
    )


def write_sids(config: Config, run: RunDir) -> tuple[Quantizer, Coded, np.ndarray]:
    """Write a run's `sids`; give its quantizer, the items' codes under it and their SIDs, int32 [N, L + 1]."""
    quantizer = Quantizer.load(run.uri("models", "quantizer"))
    coded = encode(run, quantizer)
    known_ids, known_codes = inherited_sids(
        run, RunDir(config.frozen) if config.frozen else None, levels=coded.codes.shape[1]
    )
    sids = unique(config, run, quantizer, coded, known_ids, known_codes)
    # nobody else may get the SIDs of items that left the catalogue
    gone = ~np.isin(known_ids, coded.item_ids) if config.frozen else np.zeros(len(known_ids), bool)
    ids = [*coded.item_ids, *np.array(known_ids, object)[gone].tolist()]
    given = np.concatenate([sids, known_codes[gone]])
    run.write_table(pa.table({"item_id": pa.array(ids, pa.string()), "codes": matrix_column(given)}), "sids")
    return quantizer, coded, sids


def take_over(frozen: str, run: RunDir) -> list[dict[str, Any]]:
    """Copy the quantizer of an earlier run; a fit that did not happen has no curve.

    Raises:
        UserError: that run is not finished, or the embeddings were projected in another way.
    """
    check_frozen(frozen, run.root, "quantize")
    earlier = RunDir(frozen)
    if model_digest(run.uri("models", "projector")) != model_digest(earlier.uri("models", "projector")):
        raise UserError(
            f"The quantizer of {frozen} is for another projection: take that over, too, with "
            f"stages.project.frozen={frozen}."
        )
    quantizer = Quantizer.load(earlier.uri("models", "quantizer"))
    if model_digest(run.uri("models", "quantizer")) != model_digest(earlier.uri("models", "quantizer")):
        files.remove(run.uri("sids"))  # of another quantizer
    quantizer.save(run.uri("models", "quantizer"))
    return []


def encode(run: RunDir, quantizer: Quantizer) -> Coded:
    """All items of a run under its quantizer, in hash order."""
    embeddings = files.dataset(run.uri("embeddings"))
    ids: list[str] = []
    codes, contents = [np.empty((0, len(quantizer.codebooks)), np.int32)], [np.empty(0, np.uint64)]
    for part in embeddings.to_batches(columns=["item_id", "embedding"], batch_size=BATCH_ROWS):
        vectors = torch.tensor(matrix_of(part["embedding"]))
        ids += part["item_id"].to_pylist()
        codes.append(quantizer.encode(vectors).numpy())
        contents.append(hash_rows(vectors.numpy()))
    order = hash_order(ids)
    return Coded(order, [ids[row] for row in order], np.concatenate(codes)[order], np.concatenate(contents)[order])


def unique(
    config: Config, run: RunDir, quantizer: Quantizer, coded: Coded, known_ids: list[str], known_codes: np.ndarray
) -> np.ndarray:
    """SIDs of all items, codes with the suffix, int32 [N, L + 1], beside those that are known."""
    fresh = config.collisions == "sinkhorn" and not config.frozen
    return give_sids(
        coded.item_ids,
        spread(run, quantizer, coded) if fresh else coded.codes,
        coded.contents,
        known_ids=known_ids,
        known_codes=known_codes,
        always=config.collisions == "always_suffix",
        max_suffixes=config.max_suffixes,
    )


def spread(run: RunDir, quantizer: Quantizer, coded: Coded) -> np.ndarray:
    """Codes [N, L] after the last level of items that collide is re-assigned."""
    groups = number_rows(coded.codes)
    colliding = np.flatnonzero(np.bincount(groups)[groups] > 1)
    found = files.dataset(run.uri("embeddings")).take(coded.positions[colliding], columns=["embedding"])
    vectors = torch.tensor(matrix_of(found["embedding"]))

    def distances(rows: np.ndarray) -> torch.Tensor:
        return quantizer.last_distances(vectors[np.searchsorted(colliding, rows)])

    return reassign_last_level(coded.codes, distances, content_order(coded.contents, coded.item_ids))
