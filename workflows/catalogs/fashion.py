"""Importer of fashion product photos: items without a log."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

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
    ids, titles, texts = (column.to_pylist() for column in canonical.read_csv(source, "products.csv", columns).columns)
    parts = [text.split(" - ") if text else () for text in texts]
    wrong = [product for product, values in zip(ids, parts, strict=True) if len(values) not in (0, len(ATTRIBUTES))]
    if wrong:
        raise UserError(
            f"The attributes of product {wrong[0]} in products.csv must be {len(ATTRIBUTES)} values joined by ' - '."
        )
    media = canonical.copy_images(files.join(source, "images"), ids, directory)
    attributes = [dict(zip(ATTRIBUTES, values, strict=False)) for values in parts]
    return canonical.write_catalog(
        directory,
        name="fashion",
        source="Fashion product images",
        items=canonical.items_table(ids, titles, media, attributes),
        interactions=None,
        timestamps="none",
        notes=[f"{sum(map(bool, media))} of {len(ids)} items have a photo", "items alone: there is no log"],
    )
