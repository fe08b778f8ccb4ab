"""Columns of an items table that take the place of a model: captions, interests and vectors that are given."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from storage.errors import UserError
from workflows.catalogs.canonical import GIVEN
from workflows.stages.ingest.texts import plain

FORMS = {"caption": "text", "interests": "lists of text"}
NOT_FINITE = "vector_not_finite"


def widths_of(rows: pl.DataFrame, source: str) -> dict[str, int]:
    """Returns the widths of the vectors that an items table gives, from its first rows.

    Raises:
        UserError: see `given_columns`.
    """
    columns = given_columns(rows, source)
    return {column.name: column.dtype.shape[0] for column in columns if isinstance(column.dtype, pl.Array)}


def given_columns(raw: pl.DataFrame, source: str, widths: Mapping[str, int] | None = None) -> list[pl.Series]:
    """Gives the columns of `GIVEN` that rows of an items table have their canonical form.

    Lists may be text: interests parted by `|`, `;` or commas, numbers by commas or blanks, either in brackets or not.

    Args:
        raw: the items as they were read, with `item_id`.
        source: URI of the table, for errors.
        widths: of the vectors, where these rows are not the first ones.

    Returns:
        caption string; interests list<string>; vectors float32 arrays of one width, null where there is none and where
        one has numbers that are not finite; last `vector_not_finite`: which vector that is, null elsewhere.

    Raises:
        UserError: a column cannot be read as what it should be, has no vector or vectors of several lengths, or an item
            has no embedding where others have one.
    """
    ids = raw["item_id"].cast(pl.String)
    found, not_finite = [], pl.Series(NOT_FINITE, [None] * raw.height, dtype=pl.String)
    for name in (name for name in GIVEN if name in raw.columns):
        try:
            if name in FORMS:
                found.append(plain(raw[name]) if name == "caption" else _tags(raw[name]))
                continue
            vectors = _numbers(raw[name])
        except pl.exceptions.PolarsError as error:
            raise UserError(
                f"{source} has a column {name!r} that cannot be read (type {raw[name].dtype}): write "
                f"{FORMS.get(name, 'lists of numbers')}."
            ) from error
        width = _width(vectors, ids, source, None if widths is None else widths.get(name))
        finite = vectors.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
        not_finite = not_finite.zip_with(finite.fill_null(value=True), pl.repeat(name, raw.height, eager=True))
        vectors = pl.select(pl.when(finite).then(pl.lit(vectors)).alias(name)).to_series()
        if name == "embedding" and (missing := vectors.null_count()):
            raise UserError(
                f"{missing:,} of {raw.height:,} items of {source} have no embedding of finite numbers (such as "
                f"{ids.filter(vectors.is_null())[0]!r}): give every item one, or leave the column out."
            )
        found.append(vectors.list.to_array(width))
    return [*found, not_finite]


def _tags(values: pl.Series) -> pl.Series:
    """Returns lists of texts, null where nothing is left."""
    if values.dtype == pl.String:
        values = values.str.strip_chars(" []()").str.replace_all("[;,]", "|").str.split("|")
    tag = pl.element().str.strip_chars(" \t\n'\"")
    return _filled(values.cast(pl.List(pl.String)).list.eval(tag.filter(tag != "")))


def _numbers(values: pl.Series) -> pl.Series:
    """Returns lists of float32, null where one is empty; what is no number is null in its list."""
    if values.dtype == pl.String:
        parts = values.str.replace_all(r"[\s,;\[\]()]+", " ").str.strip_chars().str.split(" ")
        values = parts.list.eval(pl.element().filter(pl.element() != "").cast(pl.Float32, strict=False))
    return _filled(values.cast(pl.List(pl.Float32)))


def _filled(lists: pl.Series) -> pl.Series:
    return pl.select(pl.when(lists.list.len() > 0).then(pl.lit(lists)).alias(lists.name)).to_series()


def _width(vectors: pl.Series, ids: pl.Series, source: str, wanted: int | None) -> int:
    """Returns the length of all vectors of a column, which is the wanted one if that is known.

    Raises:
        UserError: there is none, or they are of several lengths.
    """
    lengths = pl.DataFrame({"id": ids, "length": vectors.list.len()}).drop_nulls("length")
    kinds = lengths.group_by("length").agg(pl.len(), pl.col("id").first()).sort("len", "length", descending=True)
    if wanted is not None:
        first = pl.DataFrame({"length": wanted, "len": vectors.len(), "id": ""}, kinds.schema)
        kinds = pl.concat([first, kinds.filter(pl.col("length") != wanted)])
    if kinds.is_empty():
        raise UserError(f"{source} has a column {vectors.name!r} without any vector: fill it, or leave it out.")
    if kinds.height > 1:
        (usual, *_), (other, _, example) = kinds.row(0), kinds.row(1)
        raise UserError(
            f"{source} has a column {vectors.name!r} with vectors of {usual} and of {other} numbers (such as that of "
            f"{example!r}): give all of them one length."
        )
    return int(kinds["length"][0])
