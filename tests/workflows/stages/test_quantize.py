from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.quantizer import Quantizer
from storage.run import RunDir
from workflows.stage import Context
from workflows.stages import quantize

SETTINGS = quantize.Config(codebook_sizes=(16, 16), hidden_dims=(32,), latent_dim=8, steps=200, batch_size=64)


def context_of(run: RunDir, log: list[str], steps: list[tuple[int, int]]) -> Context:
    return Context(
        run, "", seed=3, fingerprint="f1", log=log.append, progress=lambda done, total: steps.append((done, total))
    )


def embeddings(rows: int) -> pa.Table:
    values = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
    values[1] = values[0]  # two items with one look have one code prefix
    ids = [f"item-{n}" for n in range(rows)]
    return pa.table({"item_id": ids, "embedding": pa.array(list(values), pa.list_(pa.float32(), 12))})


@pytest.mark.usefixtures("ray_cluster")
def test_every_item_gets_one_unique_sid_with_two_workers(tmp_path: Path) -> None:
    run, table, log = RunDir(str(tmp_path)), embeddings(301), []
    steps: list[tuple[int, int]] = []
    run.write_table(table, "embeddings")
    result = quantize.run(SETTINGS.model_copy(update={"workers": 2}), context_of(run, log, steps))

    sids = run.read_table("sids")
    assert (result.rows_in, result.rows_out, result.rejected) == (301, 301, 0)
    assert sids.schema.field("codes").type == pa.list_(pa.int32(), 3)
    assert sorted(sids["item_id"].to_pylist()) == sorted(table["item_id"].to_pylist())
    codes = dict(zip(sids["item_id"].to_pylist(), sids["codes"].to_pylist(), strict=True))
    assert len({tuple(sid) for sid in codes.values()}) == 301
    assert codes["item-0"][:2] == codes["item-1"][:2]

    vectors = torch.from_numpy(np.stack(table["embedding"].to_pylist()).astype(np.float32))
    assigned = Quantizer.load(run.uri("models", "quantizer")).encode(vectors).tolist()
    assert assigned == [codes[item][:2] for item in table["item_id"].to_pylist()]

    assert result.metrics["collision_share"] > 0
    assert result.metrics["collision_share_after"] == 0
    assert min(result.metrics["usage"]) > 0.9
    curve = run.read_json("metrics", "quantize.json")
    assert curve["scorecard"] == result.metrics
    assert [point["step"] for point in curve["history"]] == [50, 100, 150, 200]
    assert len(log) == 1
    assert steps[-1] == (200, 200)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["quantize"]  # the runner clears it
    assert "seconds" not in result.metrics


def test_results_do_not_depend_on_what_a_worker_gets() -> None:
    assert quantize.Config(use_gpu=True, cpus_per_worker=4).identity() == quantize.Config().identity()
    assert quantize.Config(workers=2).identity() != quantize.Config().identity()


def test_rows_are_read_in_an_order_that_files_do_not_set(tmp_path: Path) -> None:
    first, second, table = RunDir(str(tmp_path / "a")), RunDir(str(tmp_path / "b")), embeddings(50)
    first.write_table(table, "embeddings")
    second.write_table(table.take(list(range(49, -1, -1))), "embeddings")
    assert quantize.read_embeddings(first, 3).equals(quantize.read_embeddings(second, 3))
