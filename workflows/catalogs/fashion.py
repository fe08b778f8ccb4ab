"""Importer of fashion product photos: items without a log."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import files
from storage.errors import UserError
from workflows.catalogs import canonical

ATTRIBUTES = ("master_category", "sub_category", "article_type", "colour", "usage")


def import_fashion(source: str, directory: str) -> dict[str, Any]:
    """Writes a folder of product photos as a canonical catalogue without a log and returns a summary.

    Reads `products.csv` (product_id, title, attributes "master - sub - article type - colour - usage") and
    `images/<product_id>.jpg`.

    Raises:
        UserError: a file or column is missing or malformed, or the directory is not empty; nothing is written.
    """
    canonical.require_empty(directory)
    columns = dict.fromkeys(("product_id", "title", "attributes"), pa.string())
    products = canonical.read_csv(source, "products.csv", columns).combine_chunks()
    parts = pc.split_pattern(products["attributes"], " - ")
    wrong = pc.fill_null(pc.not_equal(pc.list_value_length(parts), len(ATTRIBUTES)), fill_value=False)
    if pc.any(wrong).as_py():
        first = products.filter(wrong)["product_id"][0].as_py()
        raise UserError(
            f"The attributes of product {first} in products.csv must be {len(ATTRIBUTES)} values joined by ' - '."
        )
    ids, titles = products["product_id"].to_pylist(), products["title"].to_pylist()
    media = canonical.copy_images(files.join(source, "images"), ids, directory)
    attributes = [dict(zip(ATTRIBUTES, values or (), strict=False)) for values in parts.to_pylist()]
    return canonical.write_catalog(
        directory,
        name="fashion",
        source="Fashion product images",
        items=canonical.items_table(ids, titles, media, attributes),
        interactions=None,
        timestamps="none",
        notes=[f"{sum(map(bool, media))} of {len(ids)} items have a photo", "items alone: there is no log"],
    )
