"""What there is in a catalogue to choose settings of media by: where they lie, and what a few of them come to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from models.evaluation.pairs import ahead
from models.qformer.sentences import text_of
from operators.media.fetch import FetchMedia, frame_arrays
from storage import files
from storage.media.sources import HTTP, Sources
from workflows.stages.ingest.texts import ids as ids_of

NAMED = 24  # ids that media are looked for by
PROBED = 32  # items whose media are opened
LEAST_TOLD = 16  # of them, that have a text
FOLDERS = 20  # that are looked into for media
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "mp4", "webm", "mov")


@dataclass(frozen=True)
class Media:
    """What a sample of the media came to.

    Attributes:
        kinds: `image` or `video` of the first medium of the sampled items.
        http: whether some lie behind http; these are not opened here.
        tried, opened: items whose media were opened, and those where that worked.
        problem: the commonest code of those where it did not, with an example, and what helps.
        told: how often the shipped captioner finds a picture nearer to its own item's text than another one; NaN where
            too few have a text.
    """

    kinds: dict[str, int]
    http: bool
    tried: int = 0
    opened: int = 0
    problem: str = ""
    told: float = math.nan


def pictures_by_id(catalog: str, items: pl.DataFrame) -> str | None:
    """Returns where media named by the ids of items lie, as `stages.ingest.media`; None where there are none."""
    ids = [name for name in ids_of(items["item_id"]).drop_nulls().head(NAMED) if "/" not in name]
    fs, path = files.filesystem(catalog)
    inside = sorted(entry["name"] for entry in fs.ls(path, detail=True) if entry["type"] == "directory")
    folders = ["", *(name.rsplit("/", 1)[-1] + "/" for name in inside[:FOLDERS])]
    found = Counter(
        f"{folder}{{item_id}}.{suffix}"
        for folder in folders
        for suffix in SUFFIXES
        for name in ids
        if fs.exists(f"{path}/{folder}{name}.{suffix}")
    )
    return found.most_common(1)[0][0] if found else None


def open_media(catalog: str, items: pl.DataFrame) -> Media:
    """Opens the media of a few items, as interpret will."""
    with_media = items.filter(pl.col("media").list.len() > 0)
    first = with_media["media"].list.first().struct.unnest()
    http = first["uri"].str.split("://").list.first().is_in(HTTP)
    kinds = dict(first["kind"].value_counts().iter_rows())
    here = with_media.filter(~http.fill_null(value=False)).head(PROBED)
    found = Media(kinds, bool(http.any()))
    if here.is_empty():
        return found
    rows = here.select("media", title=pl.lit("kept"), description=pl.lit(None, pl.String)).to_arrow()
    nothing = pa.array([[]] * here.height, pa.list_(pa.null()))
    fetched = FetchMedia(root=catalog, sources=Sources())(
        rows.append_column("outcome", pa.array(["kept"] * here.height)).append_column("issues", nothing)
    )
    pictures, counts = frame_arrays(fetched["frames"])
    opened = np.flatnonzero(counts)
    issues = [issue for row in fetched["issues"].to_pylist() for issue in row]
    first_frames = [pictures[place] for place in (np.cumsum(counts) - counts)[opened]]
    return replace(
        found,
        tried=here.height,
        opened=len(opened),
        problem=_problem(issues) if issues else "",
        told=_told(first_frames, here[opened]),
    )


def _problem(issues: list[dict[str, str]]) -> str:
    code = Counter(issue["code"] for issue in issues).most_common(1)[0][0]
    example = next(issue["detail"] for issue in issues if issue["code"] == code)
    remedy = ": allow it by stages.interpret.fetch.roots" if code in ("outside_root", "scheme_not_allowed") else ""
    return f"{code}, such as {example[:120]}{remedy}"


def _told(pictures: list[np.ndarray], items: pl.DataFrame) -> float:
    from models.embedding.qformer import QFormerImages, QFormerTexts  # imports torch, which the counts need not

    texts = [
        text_of(title, [(pair["key"], pair["value"]) for pair in attributes or ()])
        for title, attributes in items.select("title", "attributes").iter_rows()
    ]
    known = [place for place, text in enumerate(texts) if text]
    if len(known) < LEAST_TOLD:
        return math.nan
    seen = QFormerImages().embed_images([pictures[place] for place in known])
    read = QFormerTexts().embed_texts([texts[place] for place in known]).vectors
    return 1 - float(ahead(read @ seen.T).mean()) / (len(known) - 1)
