"""Items found by what they are: near other items, a text or a picture; by semantic ID; and what they look like."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn import functional

from models.recommenders.content import normalise
from models.semantic_ids.suffixes import sid_string
from operators.base import with_outcome
from operators.interpreter import Interpreted, Interpreter
from operators.media.fetch import frame_arrays, frame_column
from operators.media.medium import decode
from serving.cascade import Cascade
from serving.catalogue import Catalogue
from storage import files
from storage.errors import UserError
from storage.media.limits import MediaError
from storage.run import RunDir

EXAMPLES = 3  # items shown of every branch of the tree of semantic IDs
SIDE = 320  # longer side of a picture as it is shown, in pixels


class Look(NamedTuple):
    """What a run's models make of a picture: its caption, its semantic ID, and its vector, unit length [D]."""

    caption: str | None
    sid: str
    vector: torch.Tensor


class Finder:
    """Finds items of a run by their embeddings."""

    def __init__(self, run: RunDir, cascade: Cascade) -> None:
        """Takes a run and what knows the embeddings of its items; models are loaded when they are first used."""
        self._cascade = cascade
        self._interpreter: Interpreter | None = None
        self._run = run
        self._interprets = files.exists(run.uri("models", "interpreter", "config.json"))

    def nearest(
        self, query: torch.Tensor, *, k: int, items: int, banned: Sequence[int], allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns rows int64 [n] and cosines float32 [n] of the k items nearest to a vector [D], the nearest first.

        Args:
            query: the vector.
            k: how many.
            items: among how many of the first.
            banned: rows that must not be found.
            allowed: bool [items], those that may be; all where it is None.
        """
        scores = self._cascade.vectors[:items] @ functional.normalize(query, dim=0)
        scores[list(banned)] = -torch.inf
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        found = scores.topk(min(k, len(scores)))
        usable = found.values > -torch.inf
        return found.indices[usable], found.values[usable]

    def of_items(self, rows: np.ndarray) -> torch.Tensor:
        """Returns the mean vector of some items, float32 [D]."""
        return self._cascade.vectors[torch.from_numpy(rows)].mean(0)

    def of_text(self, text: str) -> torch.Tensor:
        """Returns the vector of an item of which a title alone is known, float32 [D].

        Raises:
            UserError: the run does not say how its items were interpreted, or its models find no vector.
        """
        return self._vector(self.interpreter().embed([text]))

    def of_picture(self, content: bytes) -> Look:
        """Returns what the run's models make of a picture.

        Raises:
            UserError: it is no picture that they read, or the run does not say how its items were interpreted.
        """
        found = self.interpreted(picture=content)
        vector = self._vector(found.embedding)
        return Look(found.table["caption"][0].as_py(), sid_string(found.codes[0].tolist()), vector)

    def interpreted(
        self, *, title: str | None = None, description: str | None = None, picture: bytes | None = None
    ) -> Interpreted:
        """Returns what the run's models make of one item.

        Raises:
            UserError: see `of_picture`.
        """
        interpreter = self.interpreter()
        try:
            frames = [] if picture is None else decode(picture, None, interpreter.fetch.limits).frames[:1]
        except MediaError as error:
            raise UserError(f"The picture cannot be used ({error.code}): send a JPEG, PNG or WebP file.") from error
        texts = {"title": pa.array([title], pa.string()), "description": pa.array([description], pa.string())}
        return interpreter(pa.table({"item_id": pa.array(["new"]), **texts, "frames": frame_column([frames])}))

    def _vector(self, embedding: np.ndarray) -> torch.Tensor:
        """Returns a vector that is compared with those of the items, of an embedding [1, D], zeros where it failed."""
        if not embedding.any():
            raise UserError("The run's models find no vector for this: try again later, or send something else.")
        return normalise(torch.from_numpy(embedding), self._cascade.embedding)[0]

    def picture(self, item: dict[str, Any]) -> bytes | None:
        """Returns the first picture of an item as a small JPEG, None where none can be read."""
        if not item["media"] or not self._interprets:
            return None
        kind = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
        table = pa.table({name: pa.array([item[name]], pa.string()) for name in ("title", "description")})
        table = self.interpreter().fetch(with_outcome(table.append_column("media", pa.array([item["media"]], kind))))
        frames, _ = frame_arrays(table["frames"])
        if not frames:
            return None
        return as_shown(Image.fromarray(frames[0]), SIDE)

    def interpreter(self) -> Interpreter:
        """Returns the run's operators, loaded once.

        Raises:
            UserError: the run does not say how its items were interpreted.
        """
        if self._interpreter is None:
            if not self._interprets:
                raise UserError(
                    "The run came with vectors of its own, or is of an older version: it has no model for new texts "
                    "and pictures."
                )
            self._interpreter = Interpreter(self._run)
            self._interpreter.setup()
        return self._interpreter


def as_shown(picture: Image.Image, side: int) -> bytes:
    """Returns a picture as a JPEG whose longer side has so many pixels at most."""
    written = io.BytesIO()
    picture.thumbnail((side, side))
    picture.convert("RGB").save(written, "JPEG", quality=85)
    return written.getvalue()


def branches(catalogue: Catalogue, prefix: Sequence[int], popularity: np.ndarray) -> list[dict[str, Any]]:
    """Returns what follows a prefix of semantic IDs: by `code` the number of `items`, and `examples`, popular ids.

    Args:
        catalogue: of the items.
        prefix: codes from the first level on; [] for the first level.
        popularity: of every item of the run, [N].
    """
    if len(prefix) >= catalogue.codes.shape[1]:
        return []
    rows = np.flatnonzero((catalogue.codes[:, : len(prefix)] == np.array(prefix, np.int32)).all(1))
    rows = np.setdiff1d(rows, catalogue.gone)
    liked = np.where(rows < len(popularity), popularity[np.minimum(rows, len(popularity) - 1)], 0)
    rows = rows[np.argsort(-liked, kind="stable")]
    codes = catalogue.codes[rows, len(prefix)]
    found = []
    for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
        examples = catalogue.described(rows[codes == code][:EXAMPLES].tolist(), ["item_id"])
        found.append({"code": int(code), "items": int(count), "examples": [item["item_id"] for item in examples]})
    return found
