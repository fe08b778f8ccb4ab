"""The models of the run before on the test split of this one: they know what they had learned, and nothing newer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from models.ranking.config import ITEM, SID
from models.ranking.ranker import load_ranker
from models.recommenders.other_rows import OnOtherRows, on_other_rows
from operators.columns import positions
from operators.features.ranker_inputs import Examples, masked, predict, read_items
from operators.features.tokens import HASH, NULL_ID
from operators.log.partitions import rows_among
from storage import files
from storage.run import RunDir
from workflows.stages.generate.build import load_recommender
from workflows.stages.generate.earlier import Earlier


def earlier_probabilities(earlier: RunDir, run: RunDir, test: pa.Table, number: int) -> np.ndarray | None:
    """Returns what the ranker of an earlier run says of test examples of a partition, float64 [M].

    To it, items, users and tokens of semantic IDs that its training lacked are unknown, as they were when it was
    served. Both runs have as many partitions of the log.

    Returns:
        None where it reads what these examples do not have.
    """
    ranker = load_ranker(earlier.uri("models", "ranker"))
    if ranker.config.hash != HASH or not set(ranker.config.dense) <= set(test.column_names):
        return None
    items = read_items(run, ranker.config)
    if ITEM in items.lists:
        before = earlier.read_table("features", "items", columns=["item_id", "item"])
        at = positions(run.read_table("features", "items", columns=["item_id"])["item_id"], before["item_id"])
        learned = (at >= 0) & (before["item"].to_numpy()[at] != NULL_ID)
        items.lists[ITEM] = masked(items.lists[ITEM], torch.from_numpy(np.append(learned, True)))
    if SID in items.lists:
        trained, now = (
            each.read_table("features", "items", columns=[SID])[SID].combine_chunks().flatten().to_numpy()
            for each in (earlier, run)
        )
        learned = np.append(np.isin(now, trained), True)  # behind them that of no item
        items.lists[SID] = masked(items.lists[SID], torch.from_numpy(learned))
    users = files.read_table(files.part_uri(earlier.uri("features", "users"), number), ["user_hash", "user"])
    at, known = rows_among(users["user_hash"].to_numpy(), hashes := test["user_hash"].to_numpy())
    known[known] = users["user"].to_numpy()[at[known]] != NULL_ID
    user = pa.array(np.where(known, hashes, NULL_ID))
    test = test.set_column(test.column_names.index("user"), "user", user)
    return predict(ranker, items, Examples(test, ranker.config.dense))


def earlier_recommender(earlier: Earlier) -> OnOtherRows:
    """Returns the generator that an earlier run has chosen, for the items of this one."""
    chosen = earlier.run.read_json("metrics", "generate.json")["chosen"]
    return on_other_rows(load_recommender(earlier.run, chosen), earlier.rows, earlier.items)
