from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from models.semantic_ids.quantizer import Architecture, Quantizer
from operators.assign_sids import AssignSids

REPOSITORY = Path(__file__).parents[2]


def write_quantizer(uri: str, seed: int = 0) -> None:
    torch.manual_seed(seed)
    quantizer = Quantizer(Architecture("rqvae", 3, codebook_sizes=(8, 16), latent_dim=4, hidden_dims=(8,)))
    for codebook in quantizer.codebooks:
        torch.nn.init.normal_(codebook)
    quantizer.save(uri)


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    write_quantizer(str(tmp_path / "quantizer"))
    return str(tmp_path / "quantizer")


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


def test_the_artifact_loads_and_encodes_in_a_process_without_ray(artifact: str) -> None:
    """`None` in sys.modules makes every import of Ray fail."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import torch\n"
        "from models.semantic_ids.quantizer import Quantizer\n"
        "quantizer = Quantizer.load(sys.argv[1])\n"
        "codes = quantizer.encode(torch.ones(2, 3))\n"
        "print(codes.tolist(), quantizer.decode(codes).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, artifact], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    codes = Quantizer.load(artifact).encode(torch.ones(2, 3)).tolist()
    assert (done.stdout.strip(), done.stderr) == (f"{codes} torch.Size([2, 3])", "")
