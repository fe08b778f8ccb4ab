from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from operators.base import apply, with_outcome
from operators.media.fetch import FetchMedia
from operators.media.medium import decode
from operators.media.video import decode_video
from storage.media.limits import Limits, MediaError

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
QUARTERS = np.zeros((64, 96, 3), np.uint8)  # red, green / blue, black
QUARTERS[:32, :48, 0] = QUARTERS[:32, 48:, 1] = QUARTERS[32:, :48, 2] = 250


def film(container_format: str = "mp4", codec: str = "mpeg4", frames: int = 20, gop: int = 5) -> bytearray:
    out = io.BytesIO()
    with av.open(out, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 96, 64, "yuv420p", gop
        for number in range(frames):
            picture = np.roll(QUARTERS, number % 2, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return bytearray(out.getvalue())


def picture(format_: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(QUARTERS).save(out, format_)
    return out.getvalue()


@pytest.mark.parametrize("hint", ["image", "video", None])
@pytest.mark.parametrize(
    ("container_format", "codec"),
    [
        ("mp4", "mpeg4"), ("mov", "mpeg4"), ("3gp", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mpeg4"),
        ("asf", "wmv2"), ("flv", "flv1"), ("mpegts", "mpeg4"), ("mpeg", "mpeg2video"), ("webm", "libvpx"),
    ],
)  # fmt: skip
def test_a_video_is_one_whatever_it_is_called(container_format, codec, hint):
    decoded = decode(bytes(film(container_format, codec)), hint, Limits())
    assert (decoded.video, len(decoded.frames)) == (True, 4)


@pytest.mark.parametrize("hint", ["image", "video", None])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_picture_is_one_whatever_it_is_called(format_, hint):
    decoded = decode(picture(format_), hint, Limits())
    assert not decoded.video
    assert decoded.frames[0].shape == (64, 96, 3)
    assert decoded.frames[0][10, 10, 0] > 200


@pytest.mark.parametrize(("hint", "frames"), [("image", 1), ("video", 4)])
def test_where_bytes_do_not_tell_the_kind_does(hint, frames):
    assert len(decode(picture("GIF"), hint, Limits()).frames) == frames


def test_heic_is_named():
    with pytest.raises(MediaError, match="convert them to JPEG") as told:
        decode(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic", "image", Limits())
    assert told.value.code == "unsupported_picture"


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((ONE, 0, 0, ONE), QUARTERS),
        ((0, ONE, -ONE, 0), np.rot90(QUARTERS, -1)),
        ((-ONE, 0, 0, -ONE), np.rot90(QUARTERS, 2)),
        ((0, -ONE, ONE, 0), np.rot90(QUARTERS)),
        ((-ONE, 0, 0, ONE), QUARTERS[:, ::-1]),
        ((ONE, 0, 0, -ONE), QUARTERS[::-1]),
        ((0, ONE, ONE, 0), QUARTERS.swapaxes(0, 1)),
        ((0, -ONE, -ONE, 0), QUARTERS[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_a_clip_is_turned_and_mirrored_as_players_show_it(matrix, expected):
    content = film(frames=1)
    at = content.find(b"tkhd") + 44
    a, b, c, d = matrix
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (frame,) = decode_video(bytes(content), Limits(frames=1))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 20


def fetched(root: Path, uri: str) -> dict:
    table = pa.table({"title": ["a"], "description": pa.nulls(1, pa.string())})
    table = table.append_column("media", pa.array([[{"uri": uri, "kind": "image"}]], MEDIA))
    return apply(FetchMedia(root=str(root)), with_outcome(table)).to_pylist()[0]


def test_of_a_clip_with_a_damaged_second_half_the_first_is_kept(tmp_path: Path) -> None:
    content = film("mp4", "libx264", frames=100)
    start, end = content.find(b"mdat"), content.find(b"moov") - 4  # the frames; what names their places comes after
    for place in range((start + end) // 2, end):
        content[place] ^= 0x5A
    (tmp_path / "a.mp4").write_bytes(content)
    found = fetched(tmp_path, "a.mp4")
    assert 2 <= len(found["frames"]) <= 4
    assert (found["outcome"], [issue["code"] for issue in found["issues"]]) == ("kept", ["damaged_video"])


def test_a_query_or_a_fragment_is_no_part_of_a_name_but_a_name_may_hold_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    (tmp_path / "b.png#1").write_bytes(picture("PNG"))
    for uri in ("a.png?X-Amz-Signature=s", "a.png#t=1", "b.png#1"):
        assert len(fetched(tmp_path, uri)["frames"]) == 1
    assert fetched(tmp_path, "../x/a.png?y")["issues"][0]["code"] == "outside_root"
