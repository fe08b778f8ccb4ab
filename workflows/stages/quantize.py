"""Fit the RQ-VAE on all embeddings and give every item its semantic ID."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveFloat, PositiveInt

from models.quantizer import Architecture, Quantizer
from models.quantizer_training import Schedule, fit_quantizer
from models.scorecard import scorecard
from models.semantic_ids import allocate_digits
from operators.sids import codes_array, embedding_matrix
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir
from workflows.stage import Context, Result, StageConfig

VERSION = 1
INPUTS = ("project",)


class Config(StageConfig):
    """Settings of quantize.

    Attributes:
        codebook_sizes: codewords per level, at most 25 levels. Codebooks far larger than the catalogue
            leave codes unused.
        latent_dim, hidden_dims: widths of the latent and of the layers before it.
        commitment: weight of the pull of latents towards their codewords (β).
        steps, batch_size, learning_rate: of the fit; a batch is shared among the workers.
        workers, cpus_per_worker, use_gpu: processes of the fit and what each of them gets.
    """

    resources: ClassVar[frozenset[str]] = frozenset({"cpus_per_worker", "use_gpu"})

    codebook_sizes: tuple[PositiveInt, ...] = Field((256, 256, 256), min_length=1, max_length=25)
    latent_dim: PositiveInt = 64
    hidden_dims: tuple[PositiveInt, ...] = (256, 128)
    commitment: PositiveFloat = 0.25
    steps: PositiveInt = 1_500
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 2e-3
    workers: PositiveInt = 1
    cpus_per_worker: PositiveFloat = 1
    use_gpu: bool = False


def cpus(config: Config) -> float:
    """CPUs that the fit holds at once."""
    return config.workers * config.cpus_per_worker


def run(config: Config, context: Context) -> Result:
    """Write `models/quantizer`, `sids` (item_id, codes with the deduplication digit) and `metrics/quantize.json`."""
    from workflows import training

    embeddings = read_embeddings(context.run, context.seed)
    if embeddings.num_rows == 0:
        raise UserError("There are no embeddings to quantize: give the catalogue at least one usable item.")
    fit = training.fit(
        train,
        {"run": context.run.root, "seed": context.seed, "quantize": config.model_dump(mode="json")},
        workers=config.workers,
        run=context.run,
        name=f"quantize/{context.fingerprint}",
        progress=lambda metrics: context.progress(metrics["step"], config.steps),
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.use_gpu,
    )
    quantizer, vectors = Quantizer.load(context.run.uri("models", "quantizer")), embedding_matrix(embeddings)
    codes = quantizer.encode(vectors).numpy()
    digits = allocate_digits(embeddings["item_id"].to_pylist(), codes)
    table = pa.table({"item_id": embeddings["item_id"], "codes": codes_array(np.column_stack([codes, digits]))})
    context.run.write_table(table, "sids")
    metrics = scorecard(quantizer, vectors, codes, digits)
    context.log(
        f"quantize: codebooks used {', '.join(f'{share:.0%}' for share in metrics['usage'])}; "
        f"{metrics['collision_share']:.1%} of the items share their codes before deduplication; "
        f"reconstruction cosine {metrics['reconstruction_cosine'][-1]:.3f}"
    )
    context.run.write_json({"scorecard": metrics, "history": fit.history}, "metrics", "quantize.json")
    return Result(rows_in=embeddings.num_rows, rows_out=table.num_rows, metrics=metrics)


def train(config: dict[str, Any]) -> None:
    """The fit on one worker; rank 0 writes the artifact."""
    import ray.train.torch

    from workflows import training

    run, settings = RunDir(config["run"]), Config(**config["quantize"])
    embeddings = embedding_matrix(read_embeddings(run, config["seed"])).to(ray.train.torch.get_device())
    architecture = Architecture(
        input_dim=embeddings.shape[1],
        hidden_dims=settings.hidden_dims,
        latent_dim=settings.latent_dim,
        codebook_sizes=settings.codebook_sizes,
        commitment=settings.commitment,
    )
    schedule = Schedule(settings.steps, settings.batch_size, settings.learning_rate)
    quantizer = fit_quantizer(embeddings, architecture, schedule, seed=config["seed"], report=training.report)
    if ray.train.get_context().get_world_rank() == 0:
        quantizer.save(run.uri("models", "quantizer"))


def read_embeddings(run: RunDir, seed: int) -> pa.Table:
    """All embeddings (item_id, embedding) in hash order."""
    table = run.read_table("embeddings", columns=["item_id", "embedding"])
    return table.take(pa.array(hash_order(table["item_id"].to_pylist(), seed=seed)))
