from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from models.chat.base import Failure
from models.common.encoders import image_encoder
from models.embedding.embedder import Embeddings
from models.embedding.local import LocalTexts
from operators.base import apply, with_outcome
from operators.columns import matrix_of
from operators.embed import EmbedImages, EmbedTexts
from operators.media.fetch import FRAME
from storage.errors import UserError

NOISE = np.random.default_rng(0)
PICTURES = [NOISE.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(4)]


def frames(*pictures: np.ndarray) -> list[dict]:
    return [{"height": p.shape[0], "width": p.shape[1], "rgb": p.tobytes()} for p in pictures]


def table(rows: list[dict]) -> pa.Table:
    types = {
        "title": pa.string(),
        "caption": pa.string(),
        "interests": pa.list_(pa.string()),
        "description": pa.string(),
        "frames": pa.list_(FRAME),
    }
    return with_outcome(pa.table({name: pa.array([row.get(name) for row in rows], t) for name, t in types.items()}))


@dataclass(frozen=True)
class Echo:
    """A vector that tells what the model was given: the text's length, and the first picture's sum."""

    width: ClassVar[int] = 2

    def load(self) -> None: ...

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        return np.array([[picture.sum(), np.nan if picture.max() == 0 else 1] for picture in pictures], np.float32)

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        assert all(texts) or images
        sums = [0 if image is None else image.sum() for image in images or [None] * len(texts)]
        vectors = np.array([[len(text), total] for text, total in zip(texts, sums, strict=True)], np.float32)
        failures = {row: Failure("model_refused", "no") for row, text in enumerate(texts) if "bad" in text}
        vectors[list(failures)] = 0
        return Embeddings(vectors, failures)


def test_the_image_vector_is_the_mean_of_the_frames():
    out = EmbedImages()(table([{"frames": frames(*PICTURES[:3])}, {"frames": []}, {}, {"frames": frames(PICTURES[3])}]))
    found = out["image_vector"].combine_chunks()
    assert found.is_valid().to_pylist() == [True, False, False, True]
    each = image_encoder().encode(PICTURES)
    np.testing.assert_array_equal(
        matrix_of(found.drop_null()), np.stack([(each[0] + each[1] + each[2]) / np.float32(3), each[3]])
    )


def test_a_text_without_interests_is_embedded_as_title_caption_and_description():
    rows = [
        {"title": " A hat ", "caption": "Red.", "description": "Wool"},
        {"title": "A hat", "description": " "},
        {"interests": ["red hats", "winter"], "title": "A hat", "caption": "Red.", "description": "Wool"},
    ]
    out = EmbedTexts()(table(rows))
    texts = ["A hat. Red.. Wool", "A hat", "A hat. Red.. red hats, winter. Wool"]
    np.testing.assert_array_equal(matrix_of(out["text_vector"]), LocalTexts().embed_texts(texts).vectors)


def test_rows_without_a_text_are_not_embedded():
    out = EmbedTexts(Echo())(table([{}, {"title": "abc"}, {"title": " ", "interests": []}]))
    assert out["text_vector"].to_pylist() == [None, [3, 0], None]
    assert EmbedTexts(Echo())(table([{}]))["text_vector"].to_pylist() == [None]


def test_the_first_frame_goes_along_where_texts_are_embedded_jointly():
    rows = [
        {"title": "abc", "frames": frames(PICTURES[0], PICTURES[1])},
        {"title": "abc"},
        {"frames": frames(PICTURES[2])},
        {},
    ]
    out = EmbedTexts(Echo(), joint=True)(table(rows))["text_vector"].to_pylist()
    assert out == [[3, PICTURES[0].sum()], [3, 0], [0, PICTURES[2].sum()], None]
    assert EmbedTexts(Echo())(table(rows))["text_vector"].to_pylist() == [[3, 0], [3, 0], None, None]


def test_the_result_is_known_by_the_pixels_only_where_they_are_read():
    assert "frames" not in EmbedTexts().input_columns
    assert "media_digest" not in EmbedTexts().key_columns
    assert "frames" in EmbedTexts(Echo(), joint=True).input_columns
    assert "media_digest" in EmbedTexts(Echo(), joint=True).key_columns


def test_a_text_that_fails_degrades_its_row_alone():
    known = [{"severity": "degraded", "code": "missing", "detail": "a.png"}]
    rows = table([{"title": "abc"}, {"title": "bad"}, {}, {"title": "bad"}])
    rows = rows.set_column(
        rows.schema.get_field_index("issues"), "issues", pa.array([[], known, [], []], rows.schema.field("issues").type)
    )
    out = apply(EmbedTexts(Echo()), rows).to_pydict()
    issue = {"severity": "degraded", "code": "model_refused", "detail": "no"}
    assert out["text_vector"] == [[3, 0], None, None, None]
    assert out["issues"] == [[], [*known, issue], [], [issue]]
    assert out["outcome"] == ["kept"] * 4


def test_a_vector_with_nan_reaches_no_column():
    black = np.zeros((4, 4, 3), np.uint8)
    rows = [{"frames": frames(PICTURES[0], black)}, {"frames": frames(PICTURES[0])}, {}]
    out = EmbedImages(Echo())(table(rows)).to_pydict()
    assert out["image_vector"] == [None, [PICTURES[0].sum(), 1], None]
    assert [[issue["code"] for issue in row] for row in out["issues"]] == [["vector_not_finite"], [], []]


def test_a_model_of_texts_alone_is_not_given_pictures():
    with pytest.raises(UserError, match="joint"):
        apply(EmbedTexts(joint=True), table([{"title": "abc", "frames": frames(PICTURES[0])}]))
