"""The recommenders of the run before, which fits go on from."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import torch

from models.common.recommender import Recommender
from models.recommenders.artifacts import load
from models.recommenders.product_quantizer import Quantized
from models.recommenders.settings import CodesSettings, ProductCodesSettings
from operators.columns import positions
from storage import files
from storage.artifacts import load_model
from storage.run import RunDir

CODES = "codes"  # kind and folder of the quantised items


class Earlier(NamedTuple):
    """A finished run, how many items it has, and where those of this one are among them: int64 [N], -1 for none."""

    run: RunDir
    items: int
    rows: torch.Tensor

    def recommender(self, name: str) -> Recommender | None:
        """Loads a recommender; None where the run has fitted none of this name."""
        uri = artifact_uri(self.run, name)
        return load(uri) if files.exists(files.join(uri, "config.json")) else None

    def codes(self, settings: CodesSettings) -> Quantized | None:
        """Loads the codes of a recommender's items; None where the run has none, or others."""
        uri = codes_uri(self.run, settings.name)
        if not files.exists(files.join(uri, "config.json")):
            return None
        found = Quantized(**load_model(uri, CODES)[1])
        codes, codewords, width = found.codewords.shape
        same = (codes, codewords) == (settings.codes, settings.codewords)
        if isinstance(settings, ProductCodesSettings):  # whose model reads the codewords
            same &= codes * width == settings.model.dim
        return found if same else None


def earlier_of(previous: str | None, ids: pa.ChunkedArray) -> Earlier | None:
    """Returns the run that recommenders of these items go on from; None without one, or where it knows none of them."""
    if previous is None:
        return None
    run = RunDir(previous)
    uri = run.uri("models", "generator", "items")
    if not files.exists(uri):
        return None
    before = run.read_table("models", "generator", "items")["item_id"]
    rows = torch.from_numpy(positions(ids, before))
    return Earlier(run, len(before), rows) if bool((rows >= 0).any()) else None


def codes_uri(run: RunDir, name: str) -> str:
    """Returns where the codes are that a recommender's items are quantised into."""
    return run.uri("models", "generator", CODES, name)


def artifact_uri(run: RunDir, name: str) -> str:
    """Returns where a recommender's artifact is."""
    return run.uri("models", "generator", name)
