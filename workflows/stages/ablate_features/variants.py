"""The arms of the evidence: rankers that differ in one thing alone, what they are told about items."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.evaluation.variants import TRUTH
from models.ranking.config import ITEM, USER
from models.ranking.settings import RankerSettings, TableConfig, Tables
from operators.columns import positions, rows_of
from operators.features.tokens import NULL_ID, token_hashes
from storage import files
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir

ID = "id"  # the arm that gains are over


class Arm(NamedTuple):
    """What a ranker reads of items beside their ids, and what stands in the place of captions."""

    subject: str  # what a sentence calls it, in the plural
    bags: tuple[str, ...] = ()
    caption: Literal["as it is", "none", "random", "shuffled", "truth"] = "as it is"
    rate: float = 1.0  # share of items whose caption is there, those with the least text first
    image: bool = False  # the pooled image embedding


ARMS = {
    ID: Arm("Ids"),
    "caption": Arm("Captions", ("caption",)),
    "sid": Arm("Semantic IDs", ("sid",)),
    "caption+sid": Arm("Captions and semantic IDs", ("caption", "sid")),
    "title": Arm("Titles", ("title",)),
    "image": Arm("Image embeddings", image=True),
    TRUTH: Arm("True attributes", ("caption",), caption="truth"),  # only where the catalogue tells them
    "null": Arm("Absent captions", ("caption",), caption="none"),
    "random": Arm("Random tokens", ("caption",), caption="random"),
    "shuffled": Arm("Captions of other items", ("caption",), caption="shuffled"),
    "caption-25": Arm("Captions of a quarter of the items", ("caption",), rate=0.25),
    "caption-50": Arm("Captions of half of the items", ("caption",), rate=0.5),
    "caption-75": Arm("Captions of three quarters of the items", ("caption",), rate=0.75),
}
GATE = {"0": "null", "0.25": "caption-25", "0.5": "caption-50", "0.75": "caption-75", "1": "caption"}


def arm_settings(settings: RankerSettings, arm: Arm) -> RankerSettings:
    """The ranker of an arm: the tables of ids, those of the arm's bags, and its content, whatever was set to null."""
    read = (USER, ITEM, *arm.bags)
    tables = {name: table or TableConfig() if name in read else None for name, table in settings.tables}
    return settings.model_copy(update={"tables": Tables(**tables), "content": arm.image})


def truth_of_items(catalog: str) -> str | None:
    """URI of what an embedded catalogue knows of its items; None for a catalogue that does not."""
    uri = files.join(catalog, "truth_items.parquet")
    return uri if files.exists(uri) else None


def require_truth(catalog: str) -> str:
    """The URI, where the truth has to be told.

    Raises:
        UserError: it is not.
    """
    uri = truth_of_items(catalog)
    if uri is None:
        raise UserError(
            f"{catalog} does not tell the truth about its items: take truth out of stages.ablate_features.arms."
        )
    return uri


def told_nothing(arm: Arm, items: pa.Table, run: RunDir) -> bool:
    """Whether a catalogue has nothing of what the arm would read, so that it is the arm of ids by another name.

    Args:
        arm: one of ARMS.
        items: features/items.
        run: whose items these are.
    """
    if arm.image:
        vectors = run.read_table("items", columns=["item_id", "image_vector"])["image_vector"]
        return vectors.null_count == len(vectors)
    bags = [bag for bag in arm.bags if not (bag == "caption" and arm.caption == "truth")]
    return any(not np.any(items[bag].combine_chunks().flatten().to_numpy()) for bag in bags)


def arm_items(items: pa.Table, arm: Arm, run: RunDir, catalog: str, *, seed: int) -> pa.Table:
    """features/items as the arm reads it; what is drawn depends on the seed.

    Raises:
        UserError: the arm needs the truth, and the catalogue does not tell it.
    """
    captions = items["caption"].combine_chunks()
    match arm.caption:
        case "none":
            captions = _none(len(items))
        case "random":
            captions = random_tokens(captions, np.random.default_rng([seed, 1]))
        case "shuffled":
            captions = captions.take(pa.array(np.random.default_rng([seed, 2]).permutation(len(items))))
        case "truth":
            captions = true_tokens(catalog, items["item_id"])
    if arm.rate < 1:
        captions = pc.if_else(pa.array(thin_first(run, items["item_id"], arm.rate)), captions, _none(len(items)))
    return items.set_column(items.schema.get_field_index("caption"), "caption", captions)


def random_tokens(captions: pa.ListArray, random: np.random.Generator) -> pa.ListArray:
    """For each item as many tokens as its caption has, drawn from all tokens of captions, each as likely."""
    values = captions.flatten().to_numpy()
    vocabulary = np.setdiff1d(values, [NULL_ID])
    drawn = np.where(values == NULL_ID, NULL_ID, random.choice(vocabulary, len(values)) if len(vocabulary) else 0)
    lengths = np.concatenate([[0], np.cumsum(captions.value_lengths().to_numpy())]).astype(np.int32)
    return pa.ListArray.from_arrays(lengths, drawn)


def true_tokens(catalog: str, item_ids: pa.ChunkedArray) -> pa.ListArray:
    """`attribute=value` of what can truly be seen of each item, where an embedded catalogue tells it."""
    from workflows.catalogs.synthetic.behaviour import (
        ATTRIBUTES,  # draws pictures, too, which no definition has to load
    )

    truth = files.read_table(require_truth(catalog))
    at = positions(item_ids, truth["item_id"])
    truth = truth.take(pa.array(at, mask=at < 0))  # some items show nothing that is known
    columns = [
        token_hashes([f"{name}={value}" if value is not None else name for value in truth[name].to_pylist()])
        for name in ATTRIBUTES
    ]
    tokens = np.stack(columns, axis=1)
    return pa.ListArray.from_arrays(np.arange(0, tokens.size + 1, tokens.shape[1], dtype=np.int32), tokens.reshape(-1))


def thin_first(run: RunDir, item_ids: pa.ChunkedArray, rate: float) -> np.ndarray:
    """Mask [N] of the share of items with the least text, for which a caption is most."""
    items = run.read_table("items", columns=["item_id", "title", "description"])
    items = rows_of(item_ids, items, "items")
    lengths = [pc.fill_null(pc.utf8_length(items[name]), 0).to_numpy() for name in ("title", "description")]
    order = hash_order(item_ids.to_pylist())  # equal lengths in an order that tells nothing
    order = order[np.argsort(sum(lengths)[order], kind="stable")]
    mask = np.zeros(len(order), dtype=bool)
    mask[order[: round(rate * len(order))]] = True
    return mask


def _none(rows: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), np.full(rows, NULL_ID, dtype=np.int64))
