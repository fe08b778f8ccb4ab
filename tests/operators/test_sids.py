from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from models.quantizer import Architecture, Quantizer
from operators.sids import AssignSids


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    torch.manual_seed(0)
    uri = str(tmp_path / "quantizer")
    Quantizer(Architecture(3, hidden_dims=(8,), latent_dim=4, codebook_sizes=(8, 16))).save(uri)
    return uri


def rows(embeddings: torch.Tensor) -> pa.Table:
    vectors = pa.array(embeddings.tolist(), pa.list_(pa.float32(), 3))
    return pa.table({"item_id": [f"i{n}" for n in range(len(embeddings))], "embedding": vectors})


def test_adds_the_quantizers_codes_as_declared(artifact: str) -> None:
    embeddings = torch.randn(9, 3)
    operator = pickle.loads(pickle.dumps(AssignSids(artifact)))  # noqa: S301 - as Ray ships it
    operator.setup()
    table = operator(rows(embeddings))
    assert table.column_names == ["item_id", "embedding", "codes"]
    assert table.schema.field("codes") == operator.output_schema.field("codes")
    assert table["codes"].to_pylist() == Quantizer.load(artifact).encode(embeddings).tolist()


def test_slices_chunks_and_empty_tables_give_the_same_rows(artifact: str) -> None:
    operator, table = AssignSids(artifact), rows(torch.randn(10, 3))
    whole = operator(table)["codes"].to_pylist()
    assert operator(table.slice(3, 4))["codes"].to_pylist() == whole[3:7]
    chunked = pa.concat_tables([table.slice(0, 6), table.slice(6)])
    assert operator(chunked)["codes"].to_pylist() == whole
    assert operator(table.slice(0, 0))["codes"].to_pylist() == []
