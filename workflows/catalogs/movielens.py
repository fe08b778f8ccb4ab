"""Importer of MovieLens, with posters if there are any."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage import files
from storage.errors import UserError
from workflows.catalogs import canonical

LIKED = 4.0  # stars; a rating of at least so many is a positive


def import_movielens(source: str, directory: str) -> dict[str, Any]:
    """Writes a MovieLens folder as a canonical catalogue and returns a summary.

    Reads `movies.csv` (movieId, title, genres), `ratings.csv` (userId, movieId, rating, timestamp in unix seconds) and
    `posters/<movieId>.jpg`. The rating itself is left out: as a context feature it would leak the label.

    Raises:
        UserError: a file or column is missing or malformed, or the directory is not empty; nothing is written.
    """
    canonical.require_empty(directory)
    text = pa.string()
    movies = canonical.read_csv(source, "movies.csv", {"movieId": text, "title": text, "genres": text})
    ratings = canonical.read_csv(
        source, "ratings.csv", {"userId": text, "movieId": text, "rating": pa.float32(), "timestamp": pa.int64()}
    )
    if any(column.null_count for column in ratings.columns):
        raise UserError("ratings.csv has rows with empty fields: fill them in or remove them.")
    log = canonical.log_table(ratings["userId"], ratings["movieId"], ratings["timestamp"])
    liked = pc.greater_equal(ratings["rating"], LIKED).cast(pa.float32())
    ids, titles, genres = (column.to_pylist() for column in movies.columns)
    media = canonical.copy_images(files.join(source, "posters"), ids, directory)
    return canonical.write_catalog(
        directory,
        name="movielens",
        source="MovieLens (GroupLens), https://grouplens.org/datasets/movielens/",
        items=canonical.items_table(ids, titles, media, [{"genres": value} if value else {} for value in genres]),
        interactions=log.append_column("label", liked),
        timestamps="real",
        notes=[f"label = rating >= {LIKED:g}", f"{sum(map(bool, media))} of {len(ids)} items have a poster"],
    )
