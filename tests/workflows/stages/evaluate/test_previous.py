"""The ranker of the run before, asked about the examples of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.ranking.ranker import load_ranker
from operators.base import set_columns
from operators.features.ranker_inputs import Examples, predict, read_items
from operators.features.tokens import NULL_ID
from storage.run import RunDir
from tests.serving.finished import write_run
from workflows.stages.evaluate.previous import earlier_probabilities


def test_the_ranker_before_says_what_it_would_have_said_itself(tmp_path: Path) -> None:
    """What only the newer training knows are ids and tokens that it looks up nowhere."""
    run = write_run(tmp_path / "run", labels=True)
    earlier = RunDir(str(shutil.copytree(run.root, tmp_path / "earlier")))
    items = earlier.read_table("features", "items")
    sids = items["sid"].combine_chunks()
    owner, tokens = np.repeat(np.arange(len(items)), sids.value_lengths().to_numpy()), sids.values.to_numpy()
    found, counts = np.unique(tokens[tokens != NULL_ID], return_counts=True)
    rare = found[counts.argmin()]  # the token of a prefix that few items share, all of which are new
    new = np.unique(owner[tokens == rare])
    known = {
        "item": pa.array(np.where(np.isin(np.arange(len(items)), new), NULL_ID, items["item"].to_numpy())),
        "sid": pa.ListArray.from_arrays(sids.offsets, np.where(tokens == rare, NULL_ID, tokens)),
    }
    earlier.write_table(set_columns(items, known), "features", "items")
    test, ranker = run.read_table("features", "test"), load_ranker(earlier.uri("models", "ranker"))
    assert np.isin(test["row"].to_numpy(), new).any()
    own, other = (
        predict(ranker, read_items(each, ranker.config), Examples(test, ranker.config.dense)) for each in (earlier, run)
    )
    asked = earlier_probabilities(earlier, run, test, 0)
    assert asked == pytest.approx(own, abs=1e-6)
    assert asked != pytest.approx(other, abs=1e-6)
