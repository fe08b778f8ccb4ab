from __future__ import annotations

import io
import itertools
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from operators import media
from operators.base import apply, with_outcome
from operators.media import FetchMedia, decode_image, decode_video, frame_arrays
from storage.limits import Limits, MediaError

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))


def encoded(picture: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, **{"format": "PNG", **options})
    return out.getvalue()


def video(frames: int = 12, size: int = 64, container_format: str = "mp4", gop: int = 12) -> bytes:
    """Grey levels rise over the length, so that a sampled frame tells its time."""
    out = io.BytesIO()
    with av.open(out, "w", format=container_format) as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width = stream.height = size
        stream.gop_size = gop
        stream.options = {"sc_threshold": "1000000000"}  # no key frames but those asked for
        for i in range(frames):
            level = np.full((size, size, 3), 20 + 200 * i // (frames - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def items(rows: list[tuple[str, str | None, list[str] | None]]) -> pa.Table:
    """Rows (item_id, title, URIs of pictures) as a stream's table."""
    return with_outcome(
        pa.table(
            {
                "item_id": [row[0] for row in rows],
                "title": pa.array([row[1] for row in rows], pa.string()),
                "description": pa.nulls(len(rows), pa.string()),
                "media": pa.array([r[2] and [{"uri": u, "kind": "image"} for u in r[2]] for r in rows], MEDIA),
            }
        )
    )


RED = Image.new("RGB", (60, 40), (200, 10, 10))


@pytest.mark.parametrize(
    "content",
    [
        encoded(RED),
        encoded(RED, format="JPEG", quality=95),
        encoded(RED.convert("CMYK"), format="JPEG", quality=95),
        encoded(RED.convert("P", palette=Image.Palette.ADAPTIVE), format="GIF", save_all=True, append_images=[RED]),
        encoded(RED.convert("RGBA"), format="WEBP", lossless=True),
        encoded(RED, format="BMP"),
    ],
    ids=["png", "jpeg", "cmyk", "gif", "webp", "bmp"],
)
def test_formats_decode_to_the_same_rgb(content):
    pixels = decode_image(content, Limits())
    assert pixels.shape == (40, 60, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int).mean((0, 1)) - [200, 10, 10]).max() < 12


def test_sixteen_bit_and_transparent_pictures_keep_their_content():
    ramp = np.linspace(0, 40_000, 100).astype(np.uint16).reshape(10, 10)
    grey = decode_image(encoded(Image.fromarray(ramp)), Limits())
    assert grey[0, 0, 0] < 5
    assert grey[-1, -1, 0] > 250
    assert (decode_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), Limits()) == 255).all()


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(RED, format="JPEG", exif=exif), Limits()).shape == (60, 40, 3)


def test_large_pictures_shrink_and_enormous_ones_are_not_decoded():
    wide = encoded(Image.new("RGB", (1000, 500)))
    assert decode_image(wide, Limits(max_side=100)).shape == (50, 100, 3)
    with pytest.raises(MediaError) as caught:
        decode_image(wide, Limits(max_pixels=499_999))
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"GIF89a", "not_an_image"),
        (encoded(Image.effect_noise((200, 200), 50).convert("RGB"), format="JPEG")[:2000], "broken_image"),
    ],
    ids=["svg", "header only", "truncated"],
)
def test_damaged_pictures_have_stable_codes(content, code):
    with pytest.raises(MediaError) as caught:
        decode_image(content, Limits())
    assert caught.value.code == code


def test_video_frames_are_spread_evenly_over_its_length():
    levels = [frame.mean() for frame in decode_video(video(), Limits(frames=4))]
    assert len(levels) == 4
    steps = np.diff(levels)
    assert (steps > 25).all()
    assert steps.max() < 2.5 * steps.min()


@pytest.mark.parametrize(
    ("content", "limits", "code"),
    [
        (b"not a video at all", Limits(), "broken_video"),
        (video()[:300], Limits(), "broken_video"),
        (video(), Limits(max_seconds=1), "too_long"),
        (video(), Limits(max_pixels=64 * 64 - 1), "too_many_pixels"),
        (video(6, 64, "mpegts") + video(6, 512, "mpegts"), Limits(max_pixels=64 * 64), "too_many_pixels"),
    ],
    ids=["text", "truncated", "long", "large", "grows later"],
)
def test_bad_videos_have_stable_codes(content, limits, code):
    with pytest.raises(MediaError) as caught:
        decode_video(content, limits)
    assert caught.value.code == code


def test_a_video_with_one_key_frame_is_left_when_its_time_is_up(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(media, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    assert len(decode_video(video(12), Limits(decode_seconds=100))) == 4
    with pytest.raises(MediaError) as caught:
        decode_video(video(600, gop=600), Limits(decode_seconds=100))
    assert caught.value.code == "too_slow"


def out_of_memory(*args, **kwargs):
    raise MemoryError


def test_a_lack_of_memory_is_no_fault_of_the_medium(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(RED))
    monkeypatch.setattr(Image, "open", out_of_memory)
    with pytest.raises(MemoryError):
        decode_image(encoded(RED), Limits())
    with pytest.raises(MemoryError):
        apply(FetchMedia(root=str(tmp_path)), items([("a", "a title", ["a.png"])]))
    monkeypatch.setattr(media, "_shrink", out_of_memory)
    with pytest.raises(MemoryError):
        decode_video(video(), Limits())


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_surprise_while_decoding_has_the_code_of_a_broken_medium(monkeypatch, kind):
    def surprise(*args):
        raise TypeError("no such mode")

    monkeypatch.setattr(media, "_shrink", surprise)
    with pytest.raises(MediaError) as caught:
        decode_image(encoded(RED), Limits()) if kind == "image" else decode_video(video(), Limits())
    assert caught.value.code == f"broken_{kind}"


def test_a_medium_that_cannot_even_be_named_costs_itself_alone(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "odd.png").write_bytes(b"odd")
    monkeypatch.setattr(media, "decode_image", lambda content, limits: 1 / 0)
    rows = [("a", "a title", ["http://[x", "loop", "odd.png"]), ("b", None, ["loop"])]
    out = apply(FetchMedia(root=str(tmp_path)), items(rows)).to_pylist()
    assert [(row["outcome"], [issue["code"] for issue in row["issues"]]) for row in out] == [
        ("kept", ["unreadable", "unreadable", "unreadable"]),
        ("rejected", ["unreadable", "nothing_to_interpret"]),
    ]
    assert {issue["severity"] for issue in out[0]["issues"]} == {"degraded"}


def test_failing_media_are_tried_only_so_often(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(RED))
    rows = [(str(n), "a title", ["nope.png"] * n + ["good.png"]) for n in (0, 3, 4, 50)]
    out = apply(FetchMedia(root=str(tmp_path)), items(rows)).to_pylist()
    assert [(len(row["frames"]), len(row["issues"])) for row in out] == [(1, 0), (1, 3), (0, 4), (0, 4)]


def test_fetch_gives_every_item_its_outcome(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(RED))
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    rows = [
        ("good", "a title", ["good.png"]),
        ("second", None, ["bad.jpg", "good.png"]),
        ("text only", "a title", []),
        ("degraded", "a title", ["nope.png"]),
        ("nothing", " ", ["bad.jpg"]),
        ("no media", None, None),
    ]
    out = apply(FetchMedia(root=str(tmp_path)), items(rows)).to_pylist()
    seen = {row["item_id"]: (row["outcome"], len(row["frames"]), [i["code"] for i in row["issues"]]) for row in out}
    assert seen == {
        "good": ("kept", 1, []),
        "second": ("kept", 1, ["not_an_image"]),
        "text only": ("kept", 0, []),
        "degraded": ("kept", 0, ["missing"]),
        "nothing": ("rejected", 0, ["not_an_image", "nothing_to_interpret"]),
        "no media": ("rejected", 0, ["nothing_to_interpret"]),
    }


def test_frames_survive_the_column_pixel_for_pixel(tmp_path):
    noise = Image.effect_noise((30, 20), 80).convert("RGB")
    (tmp_path / "a.png").write_bytes(encoded(noise))
    table = pa.table(
        {
            "title": pa.array([None, None], pa.string()),
            "description": pa.array([None, "x"], pa.string()),
            "media": pa.array([[{"uri": "a.png", "kind": "image"}], None], MEDIA),
        }
    )
    out = apply(FetchMedia(root=str(tmp_path)), with_outcome(table))
    pictures, counts = frame_arrays(out["frames"])
    assert counts.tolist() == [1, 0]
    assert (pictures[0] == np.asarray(noise)).all()
