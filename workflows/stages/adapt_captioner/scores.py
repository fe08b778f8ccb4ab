"""How the adapted captioner does on the pictures that were kept from its training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.evaluation.pairs import ahead
from models.qformer.model import CaptionModel
from models.qformer.weights import ROWS
from models.qformer.words import split_words
from workflows.stages.adapt_captioner.data import TEST, Lessons, features_of

JUDGED = 1_000  # held-out pictures, at most
EXAMPLES = 30
CUT = 10
LEAST_TOLD = 0.5  # share of the items that should have words that their pictures tell
LEAST_GAIN = 0.1  # by which captions should name more words of their own items than of others'


def judge(model: CaptionModel, lessons: Lessons, mapped: pa.Table, views: int) -> dict[str, Any]:
    """Returns the scores of captions of held-out pictures whose texts are whole, examples, and what to warn of.

    `words` is the F1 of the words in captions against the seen words of their items; `shuffled` the same with other
    items' captions. `recall_at_10`: for how many first sentences their picture is among the ten nearest.
    """
    held = lessons.told.filter(pc.equal(lessons.told["part"], TEST))
    held = (held.filter(held["whole"]) if pc.any(held["whole"]).as_py() else held).slice(0, JUDGED)
    features = features_of(mapped)[held["row"].to_numpy() * views]
    captions, vectors = [], []
    for start in range(0, len(features), ROWS):
        with torch.inference_mode():
            queries = model.see(torch.from_numpy(features[start : start + ROWS]))
            captions += model.decoder.write(queries)
            vectors.append(model.picture_vectors(queries))
    said = held["sentences"].to_pylist()
    with torch.inference_mode():
        texts = model.text_vectors(model.encode([row[0] for row in said]))
    near = (texts @ torch.cat(vectors).T).numpy()
    true = [set(split_words(" ".join(row))) for row in said]
    written = [set(split_words(caption)) for caption in captions]
    scores = {
        "pictures": len(captions),
        "words": _f1(written, true),
        "shuffled": _f1(written[1:] + written[:1], true),
        "recall_at_10": float((ahead(near) < CUT).mean()),
    }
    share = lessons.told.num_rows / lessons.pictures
    rows = np.linspace(0, len(captions) - 1, min(EXAMPLES, len(captions))).round().astype(int).tolist()
    ids, words = held["item_id"].to_pylist(), held["text"].to_pylist()
    examples = [{"item_id": ids[row], "text": words[row], "caption": captions[row]} for row in rows]
    return {"held_out": scores, "share_told": share, "warnings": _warnings(share, scores), "examples": examples}


def _f1(said: list[set[str]], true: list[set[str]]) -> float:
    both = sum(len(one & other) for one, other in zip(said, true, strict=True))
    return 2 * both / max(sum(map(len, said)) + sum(map(len, true)), 1)


def _warnings(share: float, scores: dict[str, Any]) -> list[str]:
    found = []
    if share < LEAST_TOLD:
        found.append(
            f"only {share:.0%} of the items have a word in their texts that their pictures tell: captions say little"
        )
    if scores["words"] - scores["shuffled"] < LEAST_GAIN:
        found.append(
            "captions name hardly more words of their own items than of others': the texts do not describe what is seen"
        )
    return found
