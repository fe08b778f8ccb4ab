"""What a run directory looks like.

RUN/workflow.yaml (resolved)  manifest.json
RUN/catalog/{items,interactions}/                           the validated, canonical catalogue
RUN/items/ embeddings/ sids/ sids_added/ features/{items,train,valid,test}/ rejects/   Parquet
RUN/models/{projector,quantizer,ranker,generator}/          safetensors + config.json
RUN/checkpoints/                                            training state and resume marks, private to the run
RUN/metrics/*.json  metrics/map/  RUN/report/index.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from storage import files


@dataclass(frozen=True)
class RunDir:
    """A run directory at any fsspec URI.

    >>> RunDir("s3://bucket/run").uri("models", "ranker")
    's3://bucket/run/models/ranker'
    """

    root: str

    def uri(self, *parts: str) -> str:
        """Returns the URI of a file or folder of the run."""
        return files.join(self.root, *parts)

    def read_table(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        """Returns one of the run's Parquet folders as a table."""
        return files.read_table(self.uri(*parts), columns)

    def write_table(self, table: pa.Table, *parts: str) -> None:
        """Replaces one of the run's Parquet folders."""
        files.write_table(self.uri(*parts), table)

    def read_json(self, *parts: str) -> Any:
        """Parses one of the run's JSON files."""
        return files.read_json(self.uri(*parts))

    def write_json(self, value: Any, *parts: str) -> None:
        """Writes one of the run's JSON files atomically."""
        files.write_json(self.uri(*parts), value)
