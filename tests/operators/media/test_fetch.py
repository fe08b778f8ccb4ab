from __future__ import annotations

import http.server
import io
import itertools
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from operators.base import apply, with_outcome
from operators.media import fetch, images
from operators.media.fetch import FetchMedia, frame_arrays, frame_column
from operators.media.images import decode_image
from storage.errors import UserError
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))


def encoded(picture: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, **{"format": "PNG", **options})
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


def out_of_memory(*args, **kwargs):
    raise MemoryError


def test_a_lack_of_memory_is_no_fault_of_the_medium(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(RED))
    monkeypatch.setattr(Image, "open", out_of_memory)
    with pytest.raises(MemoryError):
        decode_image(encoded(RED), Limits())
    with pytest.raises(MemoryError):
        apply(FetchMedia(root=str(tmp_path)), items([("a", "a title", ["a.png"])]))


def test_a_surprise_while_decoding_has_the_code_of_a_broken_medium(monkeypatch):
    def surprise(*args):
        raise TypeError("no such mode")

    monkeypatch.setattr(images, "_shrunk", surprise)
    with pytest.raises(MediaError) as caught:
        decode_image(encoded(RED), Limits())
    assert caught.value.code == "broken_image"


def test_a_medium_that_cannot_even_be_named_costs_itself_alone(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "odd.png").write_bytes(b"odd")
    monkeypatch.setattr(fetch, "decode", lambda *_: 1 / 0)
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


def fetched(root, medium="a.png", **settings) -> dict:
    return apply(FetchMedia(root=str(root), **settings), items([("a", "a title", [medium])])).to_pylist()[0]


def test_the_digest_follows_the_content_and_not_its_name(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RED))
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "b.png").write_bytes(encoded(RED))
    (tmp_path / "c.png").write_bytes(encoded(RED, compress_level=1) + b"\0")
    digest = fetched(tmp_path)["media_digest"]
    assert len(digest) == 16
    assert fetched(tmp_path, "moved/b.png")["media_digest"] == digest
    assert fetched(tmp_path / "moved", "b.png", sources=Sources(roots=("/nowhere",)))["media_digest"] == digest
    assert fetched(tmp_path, "c.png")["media_digest"] != digest
    assert fetched(tmp_path, "nope.png")["media_digest"] is None


def test_the_digest_follows_the_settings_that_decide_the_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(RED))
    deciding = [{}, {"max_media": 2}] + [
        {"limits": limits} for limits in (Limits(max_side=32), Limits(frames=2), Limits(sampling="scenes"))
    ]
    assert len({fetched(tmp_path, **settings)["media_digest"] for settings in deciding}) == len(deciding)
    patient = Limits(decode_seconds=99, max_bytes=10_000)
    assert fetched(tmp_path, limits=patient)["media_digest"] == fetched(tmp_path)["media_digest"]


def test_the_digest_knows_order_and_bounds_of_the_media(tmp_path):
    names = ("a.png", "b.png", "c.png")
    for name, level in zip(names, (0, 100, 200), strict=True):
        (tmp_path / name).write_bytes(encoded(Image.new("L", (2, 2), level)))
    rows = [("1", None, ["a.png", "b.png"]), ("2", None, ["b.png", "a.png"]), ("3", None, ["a.png"])]
    skipping = [("4", None, ["a.png", "nope.png", "b.png", "c.png"])]  # the first two that can be used
    digests = apply(FetchMedia(root=str(tmp_path), max_media=2), items(rows + skipping))["media_digest"].to_pylist()
    assert len(set(digests)) == 3
    assert digests[3] == digests[0]


@given(st.lists(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=3), max_size=6))
def test_a_frames_column_gives_back_what_it_was_made_of(shapes):
    drawn = np.random.default_rng(0)
    rows = [[drawn.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in row] for row in shapes]
    column = frame_column(rows)
    column.validate(full=True)
    pictures, counts = frame_arrays(column)
    assert counts.tolist() == [len(row) for row in rows]
    assert all((a == b).all() for a, b in zip(pictures, itertools.chain(*rows), strict=True))


def test_credentials_and_signatures_stay_out_of_the_issues(tmp_path):
    for uri in ("http://ann:secret@127.0.0.1:9/a.png?signature=secret", "s3://secret:secret@bucket/a.png"):
        out = fetched(tmp_path, uri, sources=Sources(http=True))
        assert "secret" not in str(out["issues"])
        assert "a.png" in str(out["issues"])


def test_a_long_uri_leaves_room_for_the_reason(tmp_path):
    for uri, why in (("data:image/png;base64," + "iVBO" * 999, "not allowed beside it"), ("a/" * 999, "no such file")):
        (issue,) = fetched(tmp_path, uri)["issues"]
        assert issue["detail"].startswith(uri[:14])
        assert issue["detail"].endswith(why)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "1", "I;16", "F"])
def test_shrinking_in_strips_gives_what_shrinking_at_once_gives(monkeypatch, mode):
    """Every mode, where height, width and strips divide by nothing."""
    ramp = np.add.outer(np.arange(533), np.arange(701)) / 5.0
    if mode in ("F", "I;16"):
        picture = Image.fromarray(ramp.astype(np.float32 if mode == "F" else np.uint16))
    else:
        picture = Image.fromarray(ramp.astype(np.uint8)).convert("RGB").convert(mode)
    format_ = "TIFF" if mode in ("CMYK", "F") else "PNG"
    limits = Limits(max_side=100)
    monkeypatch.setattr(images, "STRIP_PIXELS", 5_000)
    in_strips = decode_image(encoded(picture, format=format_), limits).astype(int)
    monkeypatch.setattr(images, "STRIP_PIXELS", 10**9)
    at_once = decode_image(encoded(picture, format=format_), limits).astype(int)
    assert in_strips.shape == (76, 100, 3)
    assert np.abs(in_strips - at_once).max() <= 1
    if mode not in ("P", "1"):
        values = np.asarray(picture.convert("RGB") if mode not in ("F", "I;16") else picture, dtype=float)
        expected = values.mean() if mode not in ("F", "I;16") else 255 * values.mean() / values.max()
        assert abs(in_strips.mean() - expected) < 2


class SlowPicture(http.server.BaseHTTPRequestHandler):
    """A picture after a fifth of a second; its path is its grey level."""

    def do_GET(self) -> None:
        time.sleep(0.2)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(encoded(Image.new("L", (2, 2), int(self.path[1:]))))

    def log_message(self, *args: object) -> None:
        pass


def test_remote_media_are_fetched_side_by_side_and_stay_in_order():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowPicture)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    here = f"127.0.0.1:{server.server_port}"
    rows = [(str(level), None, [f"http://{here}/{level}"]) for level in range(0, 240, 10)]
    sources = Sources(http=True, allow_private=(here,))
    start = time.monotonic()
    out = apply(FetchMedia(root="/catalog", sources=sources), items(rows))
    assert time.monotonic() - start < len(rows) * 0.2 / 2
    assert [picture[0, 0, 0] for picture in frame_arrays(out["frames"])[0]] == list(range(0, 240, 10))
    server.shutdown()
    server.server_close()


def test_a_catalogue_that_nothing_can_read_is_no_fault_of_its_media():
    with pytest.raises(UserError, match="nosuch"):
        fetched("nosuch://bucket/catalog")
