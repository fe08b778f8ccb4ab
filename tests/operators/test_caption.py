from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.captioning.captioner import ChatCaptioner, Context
from models.captioning.tagger.describe import describe
from models.captioning.tagger.tagger import Tagger
from models.chat.base import Failure
from models.common.encoders import image_encoder, imagenet_labels
from operators.base import apply, with_outcome
from operators.caption import GRID_SIDE, Caption, merge, tile
from operators.columns import matrix_column
from operators.media.fetch import FRAME


def frame(level: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def items(rows: list[list[np.ndarray] | None], vectors: dict[int, np.ndarray] | None = None) -> pa.Table:
    """Items with these frames, titled by their number."""
    frames = [row and [{"height": f.shape[0], "width": f.shape[1], "rgb": f.tobytes()} for f in row] for row in rows]
    table = pa.table({"title": [str(n) for n in range(len(rows))], "frames": pa.array(frames, pa.list_(FRAME))})
    if vectors is not None:
        dense = np.stack([vectors.get(n, np.zeros(1280, np.float32)) for n in range(len(rows))])
        valid = np.array([n in vectors for n in range(len(rows))])
        table = table.append_column("image_vector", matrix_column(dense, valid))
    return with_outcome(table)


@dataclass(frozen=True)
class Levels:
    """Says what it is shown; dark pictures are too much for it."""

    reads: tuple[str, ...] = ("title",)

    def load(self) -> None:
        pass

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        assert len(images) == len(contexts)
        return [
            Failure("model_refused", f"level {image.min()}") if image.min() < 10 else f"{context.title}: {image.max()}."
            for image, context in zip(images, contexts, strict=True)
        ]


def test_the_first_frame_is_described_and_items_without_one_are_not_asked_for():
    table = items([[frame(50), frame(60)], None, [], [frame(70)]])
    out = Caption(Levels())(table)
    assert out["caption"].to_pylist() == ["0: 50.", None, None, "3: 70."]
    assert out["issues"].to_pylist() == [[], [], [], []]


def test_the_tagger_judges_the_first_frame_by_the_items_vector():
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(n)] for n in (1, 0, 3)]
    vectors = {n: image_encoder().encode(row).mean(axis=0) for n, row in enumerate(rows) if row}
    likely = image_encoder().label_probabilities(np.stack(list(vectors.values())))
    expected = [describe(rows[n][0], p, imagenet_labels()) for n, p in zip(vectors, likely, strict=True)]
    out = Caption(Tagger())(items(rows, vectors))["caption"].to_pylist()
    assert out == [expected[0], None, expected[1]]


def test_a_vector_of_all_frames_does_not_speak_for_each():
    rows = [[frame(50), frame(200)], [frame(90)]]
    given_vectors = {n: np.full(1280, n, np.float32) for n in range(2)}

    @dataclass(frozen=True)
    class Vectors(Levels):
        reads: tuple[str, ...] = ("image_vector",)

        def caption(self, images, contexts):
            return ["none" if c.image_vector is None else f"{c.image_vector.max():g}" for c in contexts]

    table = items(rows, given_vectors)
    found = {mode: Caption(Vectors(), frames=mode)(table)["caption"].to_pylist() for mode in ("first", "grid", "each")}
    assert found == {"first": ["0", "1"], "grid": ["none", "1"], "each": ["none", "1"]}


def test_each_frame_is_described_and_the_sentences_merged():
    table = items([[frame(50), frame(60), frame(50)], None, [frame(70)]])
    assert Caption(Levels(), frames="each")(table)["caption"].to_pylist() == ["0: 50. 0: 60.", None, "2: 70."]


def test_a_grid_shows_every_frame():
    table = items([[frame(50), frame(60)], [frame(70)]])
    assert Caption(Levels(), frames="grid")(table)["caption"].to_pylist() == ["0: 60.", "1: 70."]


def test_a_failure_leaves_null_and_says_why_beside_what_was_known():
    table = items([[frame(50)], [frame(5)], [frame(5), frame(80), frame(5)]])
    known = [{"severity": "degraded", "code": "missing", "detail": "a.png"}]
    table = table.set_column(
        table.schema.get_field_index("issues"), "issues", pa.array([[], known, []], table.schema.field("issues").type)
    )
    failed = [{"severity": "degraded", "code": "model_refused", "detail": "level 5"}]

    out = apply(Caption(Levels()), table)
    assert out["caption"].to_pylist() == ["0: 50.", None, None]
    assert out["issues"].to_pylist() == [[], known + failed, failed]
    assert set(out["outcome"].to_pylist()) == {"kept"}

    out = apply(Caption(Levels(), frames="each"), table)
    assert out["caption"].to_pylist() == ["0: 50.", None, "2: 80."]
    assert out["issues"].to_pylist() == [[], known + failed, failed], "the same failure is told once"


def test_results_depend_on_the_title_only_where_it_is_told():
    told, silent = ChatCaptioner(Levels()), ChatCaptioner(Levels(), context=False)  # type: ignore[arg-type]
    assert Caption(told).key_columns == ("media_digest", "title")
    assert Caption(silent).key_columns == Caption(Tagger()).key_columns == ("media_digest",)
    assert "image_vector" not in Caption(Tagger(vector_is_local=False)).input_columns
    untitled = items([[frame(50)]]).drop_columns("title")
    assert Caption(Levels(reads=()))(untitled)["caption"].to_pylist() == ["None: 50."]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=2, max_size=12))
def test_grids_are_bounded_and_hold_nothing_enlarged(sizes):
    sheet = tile([frame(level, height, width) for level, (height, width) in enumerate(sizes, start=100)])
    assert sheet.shape[2] == 3
    assert max(sheet.shape) <= GRID_SIDE
    if len(sizes) <= 9:
        for level, (height, width) in enumerate(sizes, start=100):
            shown = (sheet == level).all(axis=2)
            rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            assert 0 < len(rows) <= height
            assert 0 < len(columns) <= width
            assert shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "a whole rectangle"


def test_a_single_frame_is_its_own_grid_and_nine_of_many_are_spread_evenly():
    assert tile([frame(9, 1000, 1000)]).shape == (1000, 1000, 3)
    sheet = tile([frame(level) for level in range(100, 117)])
    assert sorted(set(sheet.reshape(-1).tolist())) == list(range(100, 117, 2))


@pytest.mark.parametrize(
    ("texts", "merged"),
    [
        (["A red coat. It hangs.", "a red coat! On a chair."], "A red coat. It hangs. On a chair."),
        (
            ["A red coat on a grey wall.", "A blue coat in a green field."],
            "A red coat on a grey wall. A blue coat in a green field.",
        ),
        (["One   sentence. One sentence."], "One   sentence. One sentence."),
        (
            ["A tall vase of clear glass stands here.", "A tall vase of clear glass stands there."],
            "A tall vase of clear glass stands here. A tall vase of clear glass stands there.",
        ),
        (
            ["A tall white vase of clear glass stands on a table.", "A tall vase of clear glass stands on a table."],
            "A tall white vase of clear glass stands on a table.",
        ),
        (["...", "A coat."], "A coat."),
    ],
)
def test_sentences_that_say_the_same_are_said_once(texts, merged):
    assert merge(texts) == merged
