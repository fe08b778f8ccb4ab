"""Rank: fit the TorchRec ranker on Ray Train and write models/ranker."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from workflows.stage import Context, Result, StageConfig

VERSION = 1
INPUTS = ("project", "features")


class Config(StageConfig):
    """Settings of the rank stage."""

    resources: ClassVar[frozenset[str]] = frozenset({"use_gpu"})

    epochs: int = Field(10, ge=1, description="at most; the epoch with the best validation log-loss is kept")
    patience: int = Field(2, ge=1, description="epochs without a better validation log-loss before the end")
    batch_size: int = Field(512, ge=1, description="rows per step, over all workers together")
    embedding_dim: int = Field(16, ge=4, multiple_of=4)
    embedding_lr: float = Field(0.003, gt=0)
    dense_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    id_dropout: float = Field(0.3, ge=0, lt=1, description="share of user and item ids given as unknown in training")
    workers: int = Field(1, ge=1)
    use_gpu: bool = False


def cpus(config: Config) -> float:
    """CPUs that the fit holds at once."""
    return float(config.workers)


def run(config: Config, context: Context) -> Result:
    """Fit the ranker of a run whose features are written."""
    from workflows.training import fit

    outcome = fit(
        train_loop,
        {"root": context.run.root, "seed": context.seed, **config.model_dump()},
        workers=config.workers,
        run=context.run,
        name=f"rank/{context.fingerprint}",
        progress=lambda metrics: context.progress(metrics["epoch"], config.epochs),
        use_gpu=config.use_gpu,
    )
    context.run.write_json(outcome.history, "metrics", "rank.json")
    best = min(outcome.history, key=lambda epoch: epoch["valid_log_loss"])
    rows = outcome.history[-1]["rows"]
    return Result(rows_in=rows, rows_out=rows, metrics={**best, "epochs": len(outcome.history)})


def train_loop(config: dict[str, Any]) -> None:
    """The loop of one worker; rank 0 writes the artifact.

    Each worker draws its share of a common shuffle, and all take the same number of equally large steps (at most
    workers - 1 rows are left out of an epoch, others each time). Validation covers every row.
    """
    import time

    import ray.train.torch
    import torch
    import torch.distributed as dist
    from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

    from models.ranker import Ranker, RankerConfig, TrainingTask, save_ranker
    from models.sharding import gather_state, mean_loss, shard
    from operators.features import Examples, ItemFeatures
    from operators.items import Buckets
    from storage.errors import UserError
    from storage.run import RunDir
    from workflows.training import report

    run = RunDir(config["root"])
    spec = run.read_json("features", "spec.json")
    items = ItemFeatures(run.read_table("features", "items"), run.read_table("embeddings"))
    train, valid = (Examples(run.read_table("features", name), spec["dense"]) for name in ("train", "valid"))
    buckets = Buckets(**spec["buckets"])
    settings = RankerConfig(
        rows={table: buckets.of(table) for table in ("user", "item", "caption", "text", "sid")},
        dense=tuple(spec["dense"]),
        content_dim=items.embedding.shape[1],
        embedding_dim=config["embedding_dim"],
        dropout=config["dropout"],
    )
    ranker = Ranker(settings)
    ranker.set_statistics(train.dense, items.embedding, rate=float(train.label.mean()))
    device = ray.train.torch.get_device()
    model, optimizer = shard(
        TrainingTask(ranker),
        device=device,
        embedding_lr=config["embedding_lr"],
        dense_lr=config["dense_lr"],
        weight_decay=config["weight_decay"],
    )

    rank, workers = dist.get_rank(), dist.get_world_size()
    share = max(1, config["batch_size"] // workers)
    shuffle, drop = (torch.Generator().manual_seed(config["seed"] + offset) for offset in (0, 1 + rank))
    best, stale = float("inf"), 0
    state: dict[str, torch.Tensor] | None = None
    for epoch in range(config["epochs"]):
        started = time.perf_counter()
        order = torch.randperm(len(train), generator=shuffle)[: len(train) // workers * workers]
        batches = (
            train.batch(items, at, keep=torch.rand(2, len(at), generator=drop) >= config["id_dropout"])
            for at in order[rank::workers].split(share)
        )
        model.train()
        pipeline = TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)
        total, steps = torch.zeros((), device=device), 0
        while True:
            try:
                total += pipeline.progress(batches).mean()
            except StopIteration:
                break
            steps += 1
        pipeline.detach()
        valid_loss = mean_loss(model, len(valid), lambda at: valid.batch(items, at), device=device)
        stale = 0 if valid_loss < best else stale + 1
        if valid_loss < best:
            best, state = valid_loss, gather_state(model, prefix="ranker.")
        report(
            {
                "epoch": epoch + 1,
                "train_log_loss": float(total / steps),
                "valid_log_loss": valid_loss,
                "rows": len(train),
                "seconds": time.perf_counter() - started,
            }
        )
        if stale == config["patience"]:
            break
    if best == float("inf"):
        raise UserError("The ranker's validation loss is not a number: lower rank.embedding_lr and rank.dense_lr.")
    if state is not None:  # rank 0
        save_ranker(run.uri("models", "ranker"), settings, state)
