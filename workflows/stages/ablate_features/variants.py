"""The variants: rankers that differ only in the features of items that they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.evaluation.variants import TRUTH, Variant
from models.ranking.config import ITEM, USER
from models.ranking.settings import RankerSettings, TableConfig, Tables
from operators.columns import read_rows
from operators.features.tokens import NULL_ID
from storage import files
from storage.errors import UserError
from storage.hashing import hash_ids, hash_order
from storage.run import RunDir
from workflows.catalogs.survey import Survey

ID = "id"  # the variant that gains are over


@dataclass(frozen=True)
class FeatureVariant(Variant):
    """A ranker that reads some features of items beside their ids.

    Attributes:
        bags: the features.
        caption: what takes the place of captions.
        rate: share of items that have a caption, those with the least text first.
        image: whether it reads the pooled image embedding.
        long: whose semantic IDs its second history goes by, which it has beside the last items.
        prefixes: whether it reads of semantic IDs the prefixes alone.
        decoded: whether it reads the vectors that semantic IDs decode to.
    """

    bags: tuple[str, ...] = ()
    caption: Literal["as it is", "none", "random", "shuffled", "truth"] = "as it is"
    rate: float = 1.0
    image: bool = False
    long: Literal["none", "as it is", "shuffled"] = "none"
    prefixes: bool = False
    decoded: bool = False


CAPTION = ("caption",)
VARIANTS = {
    variant.name: variant
    for variant in (
        FeatureVariant(ID, "Ids"),
        FeatureVariant("caption", "Captions", CAPTION),
        FeatureVariant("sid", "Semantic IDs", ("sid",)),
        FeatureVariant("sid-prefixes", "Prefixes of semantic IDs", ("sid",), prefixes=True),
        FeatureVariant("sid-decoded", "Vectors that semantic IDs decode to", decoded=True),
        FeatureVariant("caption+sid", "Captions and semantic IDs", ("caption", "sid")),
        FeatureVariant("title", "Titles", ("title",)),
        FeatureVariant("image", "Image embeddings", image=True),
        FeatureVariant(TRUTH, "True attributes", CAPTION, caption="truth"),  # only where the catalogue has them
        FeatureVariant("null", "Absent captions", CAPTION, caption="none"),
        FeatureVariant("random", "Tokens of captions dealt out at random", CAPTION, caption="random"),
        FeatureVariant("shuffled", "Captions of other items", CAPTION, caption="shuffled"),
        FeatureVariant("caption-25", "Captions of a quarter of the items", CAPTION, rate=0.25),
        FeatureVariant("caption-50", "Captions of half of the items", CAPTION, rate=0.5),
        FeatureVariant("caption-75", "Captions of three quarters of the items", CAPTION, rate=0.75),
        FeatureVariant("long", "Long histories by semantic ID", long="as it is"),  # these two only where they are named
        FeatureVariant("long-shuffled", "Long histories by semantic IDs of other items", long="shuffled"),
    )
}
GATE = {"0": "null", "0.25": "caption-25", "0.5": "caption-50", "0.75": "caption-75", "1": "caption"}


def variant_settings(settings: RankerSettings, variant: FeatureVariant) -> RankerSettings:
    """Returns the ranker of a variant: tables of ids and of the variant's bags, also where they were set to null."""
    read = (USER, ITEM, *variant.bags)
    tables = {name: table or TableConfig() if name in read else None for name, table in settings.tables}
    vectors = {"content": variant.image, "sid_decoded": variant.decoded}
    return settings.model_copy(update={"tables": Tables(**tables), **vectors})


def truth_of_items(catalog: str) -> str | None:
    """Returns the URI of the true attributes of items; None for a catalogue without them."""
    uri = files.join(catalog, "truth_items.parquet")
    return uri if files.exists(uri) else None


def require_truth(catalog: str) -> str:
    """Returns the URI of the true attributes of items.

    Raises:
        UserError: the catalogue has none.
    """
    uri = truth_of_items(catalog)
    if uri is None:
        raise UserError(
            f"{catalog} has no true attributes of its items: take truth out of stages.ablate_features.variants."
        )
    return uri


def lacks_inputs(variant: FeatureVariant, items: pa.Table, run: RunDir) -> bool:
    """Tells whether the catalogue lacks the variant's inputs, which makes it equal to the variant of ids.

    Args:
        variant: one of VARIANTS.
        items: features/items.
        run: whose items these are.
    """
    if variant.image:
        vectors = run.read_table("items", columns=["item_id", "image_vector"])["image_vector"]
        return vectors.null_count == len(vectors)
    bags = [bag for bag in variant.bags if not (bag == "caption" and variant.caption == "truth")]
    return any(not np.any(items[bag].combine_chunks().flatten().to_numpy()) for bag in bags)


def lacks_columns(variant: FeatureVariant, catalog: Survey) -> bool:
    """Tells whether no item has what the variant reads, as far as the tables tell."""
    reads_captions = "caption" in variant.bags and variant.caption != "truth"
    return any(
        not catalog.filled[column]
        for column, read in (("media", variant.image or reads_captions), ("title", "title" in variant.bags))
        if read
    )


def variant_prefixes(prefixes: np.ndarray, variant: FeatureVariant, *, seed: int) -> np.ndarray:
    """Returns the prefixes that a variant's second history goes by; the seed decides whose an item gets."""
    return np.random.default_rng([seed, 3]).permutation(prefixes) if variant.long == "shuffled" else prefixes


def variant_items(items: pa.Table, variant: FeatureVariant, run: RunDir, catalog: str, *, seed: int) -> pa.Table:
    """Returns features/items as the variant reads it; the seed decides what is drawn.

    Raises:
        UserError: the variant reads true attributes, and the catalogue has none.
    """
    captions = items["caption"].combine_chunks()
    match variant.caption:
        case "none":
            captions = _none(len(items))
        case "random":
            captions = random_tokens(captions, np.random.default_rng([seed, 1]))
        case "shuffled":
            captions = captions.take(pa.array(np.random.default_rng([seed, 2]).permutation(len(items))))
        case "truth":
            captions = true_tokens(catalog, items["item_id"])
    if variant.rate < 1:
        captions = pc.if_else(pa.array(thin_first(run, items["item_id"], variant.rate)), captions, _none(len(items)))
    items = items.set_column(items.schema.get_field_index("caption"), "caption", captions)
    if variant.prefixes:
        items = items.set_column(items.schema.get_field_index("sid"), "sid", prefixes_alone(items["sid"]))
    return items


def prefixes_alone(sids: pa.ChunkedArray) -> pa.ListArray:
    """Returns the tokens of semantic IDs with NULL in place of codes by themselves, see `sid_tokens`."""
    lists = sids.combine_chunks()
    place = np.arange(len(lists.values)) - np.repeat(lists.offsets[:-1], np.diff(lists.offsets))
    single = (place > 0) & (place % 2 == 0)
    return pa.ListArray.from_arrays(lists.offsets, np.where(single, NULL_ID, lists.values))


def random_tokens(captions: pa.ListArray, random: np.random.Generator) -> pa.ListArray:
    """Returns as many tokens for each item as its caption has: those of all captions, dealt out anew.

    Every token stands in as many places as before, so that common ones stay common.
    """
    drawn = captions.flatten().to_numpy().copy()
    drawn[drawn != NULL_ID] = random.permutation(drawn[drawn != NULL_ID])
    lengths = np.concatenate([[0], np.cumsum(captions.value_lengths().to_numpy())]).astype(np.int32)
    return pa.ListArray.from_arrays(lengths, drawn)


def true_tokens(catalog: str, item_ids: pa.ChunkedArray) -> pa.ListArray:
    """Returns the tokens `attribute=value` of the true attributes of each item, as an embedded catalogue has them."""
    from workflows.catalogs.synthetic.truth import true_attributes  # imports what draws pictures

    truth = true_attributes(require_truth(catalog), item_ids)
    columns = [
        hash_ids([f"{name}={value}" if value is not None else name for value in truth[name].to_pylist()])
        for name in truth.column_names
    ]
    tokens = np.stack(columns, axis=1)
    return pa.ListArray.from_arrays(np.arange(0, tokens.size + 1, tokens.shape[1], dtype=np.int32), tokens.reshape(-1))


def thin_first(run: RunDir, item_ids: pa.ChunkedArray, rate: float) -> np.ndarray:
    """Returns a mask [N] of the share of items with the least text, for which a caption matters most."""
    items = read_rows(run, item_ids, "items", columns=["title", "description"]).drop_columns("item_id")
    lengths = [pc.fill_null(pc.utf8_length(texts), 0).to_numpy() for texts in items.columns]
    order = hash_order(item_ids.to_pylist())  # the order among equal lengths
    order = order[np.argsort(sum(lengths)[order], kind="stable")]
    mask = np.zeros(len(order), dtype=bool)
    mask[order[: round(rate * len(order))]] = True
    return mask


def _none(rows: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), np.full(rows, NULL_ID, dtype=np.int64))
