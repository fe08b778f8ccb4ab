"""Describe pictures in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from models.captioning.captioner import Captioner, Context
from models.chat.base import Failure
from operators.base import Operator, set_columns, with_failures
from operators.media.fetch import frame_arrays

GRID = 3  # rows and columns of a grid at most
GRID_SIDE = 768  # of a grid, in pixels
SAME = 0.8  # share of common words from which on two sentences say the same


@dataclass(frozen=True)
class Caption(Operator):
    """A caption for each item that has a frame; NULL for the others, of which the model is not asked.

    Where the model has no answer the caption is NULL, too, and an issue of severity `degraded` says why.

    Attributes:
        captioner: model that describes a picture.
        frames: of an item with several frames, describe the `first`, all of them in one picture (`grid`), or `each` by
            itself and merge the sentences.
    """

    captioner: Captioner
    frames: Literal["first", "grid", "each"] = "first"

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Frames, issues, and what the captioner reads."""
        return ("frames", "issues", *self.captioner.reads)

    @property
    def key_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The pixels, and the title where it is told; an image vector follows from the pixels."""
        return ("media_digest", *(name for name in self.captioner.reads if name != "image_vector"))

    @property
    def output_schema(self) -> pa.Schema:
        """Caption: string."""
        return pa.schema([("caption", pa.string())])

    def setup(self) -> None:
        self.captioner.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        frames, counts = frame_arrays(table["frames"])
        rows, images = self._pictures(frames, counts)
        contexts = self._contexts(table, counts)
        answers: list[list[str | Failure]] = [[] for _ in counts]
        for row, answer in zip(rows, self.captioner.caption(images, [contexts[row] for row in rows]), strict=True):
            answers[row].append(answer)
        texts = [[answer for answer in found if isinstance(answer, str)] for found in answers]
        captions = [merge(found) or None for found in texts]
        failures = {
            row: dict.fromkeys(answer for answer in found if isinstance(answer, Failure))
            for row, found in enumerate(answers)
        }
        columns = {"caption": pa.array(captions, pa.string())}
        if any(failures.values()):
            columns["issues"] = with_failures(table["issues"], failures)
        return set_columns(table, columns)

    def _pictures(self, frames: list[np.ndarray], counts: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
        """Returns the rows that have pictures, one entry per picture, and the pictures for the captioner."""
        starts = np.cumsum(counts) - counts
        rows = np.flatnonzero(counts).tolist()
        if self.frames == "first":
            return rows, [frames[starts[row]] for row in rows]
        if self.frames == "grid":
            return rows, [tile(frames[starts[row] : starts[row] + counts[row]]) for row in rows]
        return np.repeat(np.arange(len(counts)), counts).tolist(), frames

    def _contexts(self, table: pa.Table, counts: np.ndarray) -> list[Context]:
        """Returns an item's image vector speaks for the first frame, and for all where there is but one."""
        reads = self.captioner.reads
        titles = table["title"].to_pylist() if "title" in reads else [None] * len(counts)
        vectors: list[np.ndarray | None] = [None] * len(counts)
        if "image_vector" in reads:
            speaks = (self.frames == "first") | (counts == 1)
            vectors = [
                scalar.values.to_numpy() if scalar.is_valid and use else None
                for scalar, use in zip(table["image_vector"], speaks, strict=True)
            ]
        return [Context(title, vector) for title, vector in zip(titles, vectors, strict=True)]


def tile(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Lays pictures out in one, row by row on white.

    Args:
        frames: uint8 [H, W, 3], any sizes; of more than nine, nine that are evenly spread.

    Returns:
        A single frame as it is; else uint8 [H, W, 3] with sides of at most `GRID_SIDE`, where no frame is enlarged.
    """
    if len(frames) == 1:
        return frames[0]
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), GRID**2)).round().astype(int)
    columns = math.ceil(math.sqrt(len(chosen)))
    pictures = [Image.fromarray(frames[index]) for index in chosen]
    for picture in pictures:
        picture.thumbnail((GRID_SIDE // columns, GRID_SIDE // columns), Image.Resampling.BILINEAR)
    width, height = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    for place, picture in enumerate(pictures):
        left, top = place % columns * width, place // columns * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return np.asarray(sheet)


def merge(texts: Sequence[str]) -> str:
    """Joins the sentences of several texts, in order, without those that say what an earlier one said.

    Two sentences say the same if the Jaccard similarity of their words is at least `SAME`.
    """
    if len(texts) == 1:
        return texts[0]
    kept: list[tuple[str, set[str]]] = []
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
            words = set(re.findall(r"\w+", sentence.lower()))
            if words and not any(len(words & known) >= SAME * len(words | known) for _, known in kept):
                kept.append((sentence, words))
    return " ".join(sentence for sentence, _ in kept)
