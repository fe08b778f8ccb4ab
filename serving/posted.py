"""Items that are posted while a run is served: written to the store, and put behind the run's own in every replica.

What a run's models make of an item, its caption, embedding and semantic ID, is kept with it beside what those of other
runs have made of it. A run that finds an item of which its models have made nothing yet adopts it: it interprets it
from the picture and the texts that are kept, and keeps that, too.
"""

from __future__ import annotations

import io
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from models.semantic_ids.suffixes import NO_SUFFIX, sid_string
from operators.base import KEPT
from operators.columns import matrix_of
from operators.log.events import SECOND_US
from operators.sid_registry import added_sids, give_sids
from serving.cascade import Cascade
from serving.catalogue import Catalogue
from serving.finder import Finder, as_shown
from serving.query import MissingError, NewItem, TakenError
from serving.stores.base import DELETED, HIDDEN, SHOWN, Item, ItemStore
from storage.artifacts import model_digest
from storage.errors import StoreError, UserError
from storage.hashing import hash_rows
from storage.run import RunDir

SIDE = 384  # longer side of a picture as it is kept, in pixels
NO_VECTOR = np.empty(0, np.float32)
RETRY_S = 60.0  # until an item is tried again that could not be interpreted
MOST_MODELS = 4  # of which it is kept what they have made of an item
LOG = logging.getLogger("tesserec.items")


class _Made(NamedTuple):
    """What a run's models make of an item; the codes without a suffix, until it has its place, vector float32 [D]."""

    caption: str | None
    interests: list[str] | None
    codes: list[int]
    vector: np.ndarray


class PostedItems:
    """The posted items of a store behind the items of a run, each interpreted by the run's own models."""

    def __init__(self, run: RunDir, store: ItemStore, catalogue: Catalogue, cascade: Cascade, finder: Finder) -> None:
        """Takes a run that is loaded, and the items that were posted to its models."""
        self._store, self._cascade, self._finder = store, cascade, finder
        self._models = " ".join(str(model_digest(run.uri("models", name))) for name in ("projector", "quantizer"))
        self._registered = added_sids(run)
        self._catalogue, self._known = catalogue, dict[str, tuple[Item, int]]()  # what the store has, and its rows
        self._replaced: set[int] = set()  # rows of items that look otherwise by now
        self._strange = dict[str, float]()  # items of which these models have made nothing, and when to try again
        self._reading, self._writing = threading.Lock(), threading.Lock()

    @torch.inference_mode()
    def now(self) -> Catalogue:
        """Returns the catalogue with all that any replica has written by now."""
        if self._store.items_version() != self._catalogue.version:
            with self._reading:
                version, items = self._store.items_after(self._catalogue.version)
                if version != self._catalogue.version:
                    self._catalogue = self._with(version, items)
        return self._catalogue

    def post(self, new: NewItem) -> None:
        """Takes an item: it is interpreted, gets a semantic ID that no other has, and is in the next answer.

        Raises:
            TakenError: there is an item of this id.
            UserError: the run cannot interpret it.
        """

        def free(catalogue: Catalogue) -> Catalogue:
            if catalogue.own_row(new.item_id) >= 0 or self._kept(catalogue, new.item_id) is not None:
                raise TakenError(f"There is an item {new.item_id[:100]!r} already: choose another item_id.")
            return catalogue

        free(self.now())
        about, made, picture = self._made(new)
        bare = Item(new.item_id, HIDDEN if new.hidden else SHOWN, about, NO_VECTOR)

        def placed(catalogue: Catalogue) -> tuple[Item, bytes | None]:
            return _with_made(bare, self._models, self._placed(free(catalogue), new.item_id, made)), picture or b""

        self._write(placed)

    def change(self, item_id: str, given: Mapping[str, Any]) -> None:
        """Changes an item: `hidden`, and of a posted one title, description, attributes and picture, where given.

        With any of these, or where it has no place in the run yet, it is interpreted anew, and keeps its semantic ID if
        the codes are the same.

        Raises:
            MissingError: there is no such item.
            TakenError: somebody else has changed it meanwhile.
            UserError: it is one of the run's own, or the run cannot interpret it.
        """
        old, fields = self._item(self.now(), item_id), {name: given[name] for name in given if name != HIDDEN}
        if fields and self._catalogue.own_row(item_id) >= 0:
            raise UserError(
                f"The item {item_id[:100]!r} is of the run's own catalogue: only its `hidden` can be set; change "
                "the rest there and make a run of that."
            )
        new = None
        if fields or item_id in self._strange:
            new = self._made(replace(self._new(old), **fields))

        def changed(catalogue: Catalogue) -> tuple[Item, bytes | None]:
            now = self._item(catalogue, item_id)
            state = now.state if HIDDEN not in given else HIDDEN if given[HIDDEN] else SHOWN
            if _sent(now) != _sent(old):
                raise TakenError(f"The item {item_id[:100]!r} was changed meanwhile: look at it and try again.")
            if new is None:
                return now._replace(state=state), None
            about, made, picture = new
            had = _made_by(self._models, now)
            placed = self._placed(catalogue, item_id, made, had=None if had is None else had.codes)
            bare = Item(item_id, state, {**about, "posted": _posted(now)}, NO_VECTOR)
            return _with_made(bare, self._models, placed), picture if "picture" in fields else None

        self._write(changed)

    def delete(self, item_id: str) -> None:
        """Removes an item, for good; one of the run's leaves a mark, so that it stays away.

        Raises:
            MissingError: there is no such item.
        """

        def gone(catalogue: Catalogue) -> tuple[Item, bytes | None]:
            return Item(self._item(catalogue, item_id).item_id, DELETED, {}, NO_VECTOR), b""

        self._write(gone)

    def adopt(self, item_id: str | None = None) -> int:
        """Takes the items, or one, of which other models have made something, and these nothing yet; returns how many.

        Whatever keeps one of them away, which the log says once, keeps no other away; after a while, or once it is
        changed, it is tried again.
        """
        self.now()
        taken = 0
        for name in sorted(self._strange) if item_id is None else [item_id]:
            due = self._strange.get(name, math.inf)
            if due > time.monotonic():
                continue
            try:
                taken += self._adopted(name)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - the others are to have their places
                if not due:
                    why = error if isinstance(error, UserError) else repr(error)
                    LOG.warning("The posted item %r has no place in a run that is served: %s", name, why)
                with self._reading:
                    if name in self._strange:
                        self._strange[name] = time.monotonic() + RETRY_S
        return taken

    @property
    def waiting(self) -> int:
        """Number of items that have no place in the run yet."""
        self.now()
        return len(self._strange)

    def picture(self, item_id: str) -> bytes | None:
        """Returns the picture of a posted item."""
        return self._store.item_picture(item_id)

    def hidden(self, item_id: str) -> bool:
        """Tells whether an item is hidden."""
        return item_id in self._known and self._known[item_id][0].state == HIDDEN

    def _adopted(self, item_id: str) -> bool:
        """Takes an item of which these models have made nothing; says whether, for others may have been faster."""
        old = self._known[item_id][0]
        _, made, _ = self._made(self._new(old))

        def adopted(catalogue: Catalogue) -> tuple[Item, bytes | None]:
            now = self._known[item_id][0]
            if item_id not in self._strange or _sent(now) != _sent(old):
                raise TakenError("It was taken or changed meanwhile.")
            return _with_made(now, self._models, self._placed(catalogue, item_id, made)), None

        try:
            self._write(adopted)
        except TakenError:
            return False
        return True

    def _write(self, change: Callable[[Catalogue], tuple[Item, bytes | None]]) -> None:
        """Writes what a change makes of the newest catalogue; where another replica was faster, of the next one."""
        with self._writing:
            while True:
                catalogue = self.now()
                item, picture = change(catalogue)
                if self._store.keep_item(item, version=catalogue.version, picture=picture):
                    return

    def _kept(self, catalogue: Catalogue, item_id: str) -> Item | None:
        """Returns an item that there is, be it one that has no place in the run yet."""
        item, _ = self._known.get(item_id, (Item(item_id, SHOWN, {}, NO_VECTOR), -1))
        return item if item.about or catalogue.rows([item_id])[0] >= 0 else None

    def _item(self, catalogue: Catalogue, item_id: str) -> Item:
        if (item := self._kept(catalogue, item_id)) is None:
            raise MissingError(f"There is no item {item_id[:100]!r} in this catalogue.")
        return item

    def _new(self, item: Item) -> NewItem:
        """Returns a posted item as if it were posted again."""
        known = {name: item.about[name] for name in ("title", "description", "attributes")}
        return NewItem(item.item_id, **known, picture=self._store.item_picture(item.item_id))

    def _made(self, new: NewItem) -> tuple[dict[str, Any], _Made, bytes | None]:
        """Returns what is to be kept of an item: what was sent, what the models make of it, and its picture."""
        texts = {"title": new.title, "description": new.description}
        if new.picture is None and not any(text and text.strip() for text in texts.values()):
            raise UserError("There is nothing to interpret: send a picture, a title or a description.")
        found = self._finder.interpreted(**texts, picture=new.picture)
        issues = [issue for row in found.table["issues"].to_pylist() for issue in row]
        if issues or found.table["outcome"].to_pylist() != [KEPT] or not found.embedding.any():
            detail = ", ".join(issue["code"] for issue in issues) or "no vector"
            raise UserError(f"The run's models could not interpret the item ({detail}): try again, or send more of it.")
        about = {
            **texts,
            "attributes": {name: list(values) for name, values in new.attributes.items()},
            "time": time.time(),
        }
        caption, interests = (found.table[name][0].as_py() for name in ("caption", "interests"))
        picture = None if new.picture is None else as_shown(Image.open(io.BytesIO(new.picture)), SIDE)
        return about, _Made(caption, interests, found.codes[0].tolist(), found.embedding[0]), picture

    def _placed(self, catalogue: Catalogue, item_id: str, made: _Made, had: list[int] | None = None) -> _Made:
        """Returns it with the suffix that makes the semantic ID unique; with the one that the item had if that fits."""
        prefix = np.array([made.codes], np.int32)
        at = np.flatnonzero((catalogue.codes[:, :-1] == prefix).all(1))
        ids = [item["item_id"] for item in catalogue.described(at.tolist(), ["item_id"])]
        known = dict(zip(ids, catalogue.codes[at].tolist(), strict=True))
        for part in self._registered:
            known |= dict(zip(part["item_id"].to_pylist(), matrix_of(part["codes"]).tolist(), strict=True))
        known.pop(item_id, None)
        if had is not None and had[:-1] == made.codes:
            known[item_id] = had
        sids = give_sids(
            [item_id],
            prefix,
            hash_rows(made.vector[None]),
            known_ids=list(known),
            known_codes=np.array(list(known.values()), np.int32).reshape(-1, catalogue.codes.shape[1]),
            always=bool((catalogue.codes[:, -1] != NO_SUFFIX).all()),
        )
        return made._replace(codes=sids[0].tolist())

    def _with(self, version: int, items: list[Item]) -> Catalogue:
        """Returns the catalogue of a version; what stands behind that of now before it is out harms nobody."""
        catalogue, fresh, rows = self._catalogue, list[tuple[Item, _Made]](), dict[str, int]()
        for item in items:
            before, at = self._known.get(item.item_id, (None, -1))
            own = catalogue.own_row(item.item_id)
            made = None if item.state == DELETED else _made_by(self._models, item)
            if own < 0 and not (made is not None and at >= 0 and _sent(before) == _sent(item)):
                self._replaced |= {at} - {-1}
                at = len(catalogue) + len(fresh) if made is not None else -1
                fresh += [] if made is None else [(item, made)]
            at = max(at, own)
            if own < 0 and made is None and item.about:
                self._strange[item.item_id] = 0.0
            else:
                self._strange.pop(item.item_id, None)
            self._known[item.item_id], rows[item.item_id] = (item, at), -1 if item.state == DELETED else at
        codes = np.array([made.codes for _, made in fresh], np.int32).reshape(-1, catalogue.codes.shape[1])
        seen = pa.Table.from_pylist([_seen(*each) for each in fresh], catalogue.posted.schema)
        if fresh:
            vectors = torch.from_numpy(np.stack([made.vector for _, made in fresh]))
            self._cascade.append(seen, codes[:, :-1], vectors)
        away = {at for item, at in self._known.values() if item.state != SHOWN and at >= 0}
        times = [int(_posted(item) * SECOND_US) for item, _ in fresh]
        return catalogue.followed(seen, codes, times, rows, sorted(self._replaced | away), version)


def _seen(item: Item, made: _Made) -> dict[str, Any]:
    """Returns what people see of a posted item, as a row of `Catalogue.posted`."""
    pairs = [(name, value) for name, values in item.about["attributes"].items() for value in values]
    texts = {name: item.about[name] for name in ("title", "description")}
    more = {"caption": made.caption, "interests": made.interests, "sid": sid_string(made.codes)}
    return {"item_id": item.item_id, **texts, **more, "attributes": pairs, "media": []}


def _posted(item: Item) -> float:
    """Returns when an item was posted first; `time` is that of its last change."""
    return float(item.about.get("posted", item.about["time"]))


def _sent(item: Item | None) -> dict[str, Any]:
    """Returns what was sent of an item."""
    return {} if item is None else {name: value for name, value in item.about.items() if name != "made"}


def _every_made(item: Item) -> dict[str, _Made]:
    """Returns what has been made of an item, by the models."""
    found, start = {}, 0
    for models, (caption, interests, codes, width) in item.about.get("made", {}).items():
        found[models] = _Made(caption, interests, codes, item.vector[start : start + width])
        start += width
    return found


def _made_by(models: str, item: Item) -> _Made | None:
    return _every_made(item).get(models)


def _with_made(item: Item, models: str, made: _Made) -> Item:
    """Returns an item with what models have made of it; the vectors stand one behind the other."""
    others = {name: other for name, other in _every_made(item).items() if name != models}
    kept = dict([*others.items(), (models, made)][-MOST_MODELS:])
    plain = {name: [*each[:3], len(each.vector)] for name, each in kept.items()}
    vectors = np.concatenate([each.vector for each in kept.values()])
    return Item(item.item_id, item.state, {**item.about, "made": plain}, vectors)
