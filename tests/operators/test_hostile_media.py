"""Files and URIs that strangers may put into a catalogue, each with what must come of it."""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from operators.base import apply, with_outcome
from operators.media.fetch import FetchMedia, frame_arrays
from operators.media.images import decode_image
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources

MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))
SECONDS = 5.0  # that any case may take; most take milliseconds
RED = Image.new("RGB", (60, 40), (200, 10, 10))
NOISE = Image.effect_noise((200, 150), 60).convert("RGB")


def encoded(picture: Image.Image, format_: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format_, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *extra: bytes, data: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG of which every part can lie."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def tiff(width: int, height: int, *entries: tuple[int, int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one strip or tile of grey deflated pixels; entries are (tag, type, value)."""
    common = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags = sorted(common + list(entries))
    offset = 8 + 2 + 12 * len(tags) + 4
    tags = [(tag, kind, offset if tag in (273, 324) else value) for tag, kind, value in tags]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + struct.pack("<I", 0) + data


def gif(width: int, height: int) -> bytes:
    """A canvas of any size with one pixel on it."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\xff\0\0\0\0\0"
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def jpeg_of_scans(count: int) -> bytes:
    """The last scan of a large progressive JPEG again and again: a few bytes each, all blocks each."""
    content = encoded(Image.new("L", (6000, 6000)), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * count + b"\xff\xd9"


def with_segment(marker: int, data: bytes, content: bytes = b"") -> bytes:
    """A JPEG with a segment of its own behind its start."""
    content = content or encoded(RED, "JPEG", quality=95)
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:]


def stereo_of_scans(count: int) -> bytes:
    """The same with the index of a file of two pictures, which Pillow calls a format of its own."""
    pair = encoded(RED, "MPO", save_all=True, append_images=[RED])
    start = pair.index(b"MPF\0")
    index = pair[start : start + int.from_bytes(pair[start - 2 : start], "big") - 2]
    return with_segment(0xE2, index, jpeg_of_scans(count))


def video_of_scans(count: int) -> bytes:
    """A film of one such picture, whose header says that it is small."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mjpeg", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        packet = av.Packet(jpeg_of_scans(count))
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 6), 0, 0
        packet.is_keyframe = True
        container.mux(packet)
    return out.getvalue()


def avif_that_lies(*, deep: bool) -> bytes:
    """A picture of 640 x 480 whose box says 64 x 48; `deep`: and the AV1 header that its box of settings repeats."""
    large, small = (encoded(Image.new("RGB", size), "AVIF") for size in ((640, 480), (64, 48)))
    lying = bytearray(large.replace(struct.pack(">II", 640, 480), struct.pack(">II", 64, 48)))
    if deep:
        at = small.index(b"\x0a", small.index(b"mdat"))  # a sequence header: its type, its length, itself
        header, pixels = small[at : at + 2 + small[at + 1]], lying.index(b"mdat") + 4
        end = lying.index(b"av1C") - 4 + int.from_bytes(lying[lying.index(b"av1C") - 4 :][:4], "big")
        place = lying.index(struct.pack(">I", pixels), lying.index(b"iloc"))
        for start in (place, *(lying.index(box) - 4 for box in (b"meta", b"iprp", b"ipco", b"av1C"))):
            struct.pack_into(">I", lying, start, int.from_bytes(lying[start : start + 4], "big") + len(header))
        lying[end:end] = header
    return bytes(lying)


def ycck() -> bytes:
    """CMYK whose Adobe segment says YCCK."""
    content = encoded(RED.convert("CMYK"), "JPEG", quality=95)
    at = content.index(b"Adobe")
    return content[: at + 11] + b"\x02" + content[at + 12 :]


def video(*, codec: str = "mpeg4", rate: int | Fraction = 6, audio_only: bool = False) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        if audio_only:
            sound = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
            container.mux(sound.encode())
        else:
            stream = container.add_stream(codec, rate=rate)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for level in range(12):
                pixels = np.full((64, 64, 3), 10 * level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    return out.getvalue()


def patched(content: bytes, box: bytes, offset: int, layout: str, *values: int) -> bytes:
    """A video with other numbers `offset` bytes behind the name of a box; every box of that name."""
    out = bytearray(content)
    at = content.find(box)
    while at >= 0:
        struct.pack_into(layout, out, at + 4 + offset, *values)
        at = content.find(box, at + 1)
    return bytes(out)


def apng() -> bytes:
    return encoded(RED, "PNG", save_all=True, append_images=[Image.new("RGB", RED.size, "blue")] * 3)


def animated(format_: str) -> bytes:
    return encoded(RED, format_, save_all=True, append_images=[Image.new("RGB", RED.size, "blue")] * 3, lossless=True)


BOMB = zlib.compress(bytes(200 << 20))

# name of the file → (content, what comes of it: a code, or the size (height, width) of the frames)
FILES: dict[str, tuple[Callable[[], bytes], str | tuple[int, int]]] = {
    # bombs: few bytes that claim, or unpack to, very many
    "png of 2 gigapixels.png": (lambda: png(50_000, 40_000), "too_many_pixels"),
    "png of 100 megapixels.png": (lambda: png(10_000, 10_000), "too_many_pixels"),
    "png of 4 exapixels.png": (lambda: png(2**31 - 1, 2**31 - 1), "too_many_pixels"),
    "png of no pixels.png": (lambda: png(0, 0), "not_an_image"),
    "png with alpha at the limit.png": (lambda: png(7000, 7000, data=bytes(7000 * 28_001), colour=6), (384, 384)),
    "large png of 16 bits.png": (lambda: png(2500, 2500, data=bytes(2500 * 5_001), bits=16, colour=0), (384, 384)),
    "png whose pixels go on.png": (lambda: png(4, 4, data=bytes(50 << 20)), (4, 4)),
    "png with a text bomb.png": (
        lambda: png(4, 4, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB), data=bytes(52)),
        "broken_image",
    ),
    "png with a zipped text bomb.png": (
        lambda: png(4, 4, chunk(b"zTXt", b"a\0\0" + BOMB), data=bytes(52)),
        "broken_image",
    ),
    "png with a profile bomb.png": (lambda: png(4, 4, chunk(b"iCCP", b"a\0\0" + BOMB), data=bytes(52)), "broken_image"),
    "gif of a huge canvas.gif": (lambda: gif(65_535, 65_535), "too_many_pixels"),
    "bmp of a huge size.bmp": (lambda: bmp(40_000, 40_000), "too_many_pixels"),
    "bmp without pixels.bmp": (lambda: bmp(4_000, 4_000), "broken_image"),
    "tiff of a huge size.tif": (lambda: tiff(60_000, 60_000, (273, 4, 0), (279, 4, 9)), "too_many_pixels"),
    "tiff of a huge tile.tif": (
        lambda: tiff(16, 16, (322, 4, 60_000), (323, 4, 60_000), (324, 4, 0), (325, 4, 9)),
        "too_many_pixels",
    ),
    "webp of a huge canvas.webp": (
        lambda: patched(encoded(RED, "WEBP", lossless=True), b"VP8L", 5, "<I", (1 << 28) - 1),
        "too_many_pixels",
    ),
    "webp of 40 megapixels.webp": (
        lambda: encoded(Image.new("RGB", (8000, 5000)), "WEBP", quality=0, method=0, lossless=True),
        "too_many_pixels",
    ),
    "jpeg of a huge size.jpg": (
        lambda: encoded(RED, "JPEG").replace(struct.pack(">HH", 40, 60), struct.pack(">HH", 65_000, 65_000)),
        "too_many_pixels",
    ),
    "jpeg of thousands of scans.jpg": (lambda: jpeg_of_scans(5_000), "too_slow"),
    "stereo jpeg of hundreds of scans.jpg": (lambda: stereo_of_scans(500), "too_slow"),
    "film of a jpeg of hundreds of scans.mp4": (lambda: video_of_scans(500), "too_slow"),
    "progressive jpeg.jpg": (lambda: encoded(RED, "JPEG", progressive=True), (40, 60)),
    # damage
    "nothing.jpg": (lambda: b"", "empty"),
    "cut.jpg": (lambda: encoded(NOISE, "JPEG")[:3000], "broken_image"),
    "cut.png": (lambda: encoded(NOISE, "PNG")[:3000], "broken_image"),
    "cut.gif": (lambda: encoded(NOISE, "GIF")[:3000], "broken_image"),
    "cut.webp": (lambda: encoded(NOISE, "WEBP")[:3000], "broken_image"),
    "cut.tif": (lambda: encoded(NOISE, "TIFF", compression="tiff_lzw")[:3000], "not_an_image"),
    "png with a wrong checksum.png": (
        lambda: encoded(RED, "PNG")[:29] + b"\0\0\0\0" + encoded(RED, "PNG")[33:],
        "not_an_image",
    ),
    "broken exif.jpg": (lambda: with_segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 99), (40, 60)),
    "exif of circles.jpg": (
        lambda: with_segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)),
        (40, 60),
    ),
    "broken profile.jpg": (lambda: encoded(RED, "JPEG", icc_profile=b"no profile at all"), (40, 60)),
    # names that say something else
    "a png.jpg": (lambda: encoded(RED, "PNG"), (40, 60)),
    "a video.jpg": (video, (64, 64)),
    "text.jpg": (lambda: b"a photograph of a shoe", "not_an_image"),
    "page.jpg": (lambda: b"<!doctype html><script>alert(1)</script>", "not_an_image"),
    "drawing.jpg": (
        lambda: b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        "not_an_image",
    ),
    "paper.jpg": (lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "not_an_image"),
    "script.jpg": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "not_an_image",
    ),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(26), "not_an_image"),
    "pickle.jpg": (lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.", "not_an_image"),
    "icon.jpg": (lambda: encoded(RED, "ICO"), "not_an_image"),
    "layers.jpg": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 40, 60, 8, 3) + bytes(99), "not_an_image"),
    "jpeg 2000.jpg": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "not_an_image"),
    "jpeg and page.jpg": (lambda: encoded(RED, "JPEG") + b"<html><script>alert(1)</script>" * 99, (40, 60)),
    "jpeg and archive.jpg": (lambda: encoded(RED, "JPEG") + b"PK\x03\x04" + bytes(999), (40, 60)),
    # every kind of pixel
    "animated.gif": (lambda: animated("GIF"), (40, 60)),
    "animated.webp": (lambda: animated("WEBP"), (40, 60)),
    "animated.png": (apng, (40, 60)),
    "animated.avif": (lambda: encoded(RED, "AVIF", save_all=True, append_images=[RED] * 3), (40, 60)),
    "with alpha.avif": (lambda: encoded(RED.convert("RGBA"), "AVIF"), (40, 60)),
    "cmyk.jpg": (lambda: encoded(RED.convert("CMYK"), "JPEG"), (40, 60)),
    "ycck.jpg": (ycck, (40, 60)),
    "grey.jpg": (lambda: encoded(RED.convert("L"), "JPEG"), (40, 60)),
    "grey with alpha.png": (lambda: encoded(RED.convert("LA"), "PNG"), (40, 60)),
    "palette with transparency.png": (lambda: encoded(RED.convert("P"), "PNG", transparency=0), (40, 60)),
    "one bit.png": (lambda: encoded(RED.convert("1"), "PNG"), (40, 60)),
    "sixteen bits.png": (lambda: encoded(Image.fromarray(np.full((40, 60), 999, np.uint16)), "PNG"), (40, 60)),
    "sixteen bits big-endian.tif": (lambda: encoded(Image.fromarray(np.full((40, 60), 999, ">u2")), "TIFF"), (40, 60)),
    "float.tif": (lambda: encoded(Image.fromarray(np.eye(40, 60, dtype=np.float32)), "TIFF"), (40, 60)),
    "float of nothing.tif": (lambda: encoded(Image.fromarray(np.full((40, 60), np.nan, np.float32)), "TIFF"), (40, 60)),
    "float with holes.tif": (
        lambda: encoded(Image.fromarray(np.array([[np.nan, np.inf, 0.0, 1.0]], np.float32)), "TIFF"),
        (1, 4),
    ),
    # shapes
    "point.png": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), (1, 1)),
    "column.png": (lambda: encoded(Image.new("RGB", (1, 65_535)), "PNG"), (384, 1)),
    "row.jpg": (lambda: encoded(Image.new("RGB", (65_500, 1)), "JPEG"), (1, 384)),
    "thread.png": (lambda: png(1, 3_000_000, data=bytes(6_000_000), colour=0), (384, 1)),
    # videos
    "good.mp4": (video, (64, 64)),
    "cut.mp4": (lambda: video()[:300], "broken_video"),
    "without index.mp4": (lambda: video().replace(b"moov", b"gone"), "broken_video"),
    "audio only.mp4": (lambda: video(audio_only=True), "not_a_video"),
    "a day long.mp4": (lambda: video(codec="mjpeg", rate=Fraction(1, 7200)), "too_long"),
    "whose header lies.mp4": (lambda: patched(video(), b"mp4v", 24, ">HH", 60_000, 60_000), (64, 64)),
    "whose frames grow.mp4": (
        lambda: video(codec="mjpeg").replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65_000, 65_000)),
        "broken_video",
    ),
    "no frames.mp4": (lambda: patched(video(), b"stsz", 4, ">II", 0, 0), "broken_video"),
    "frames of gigabytes.mp4": (lambda: patched(video(), b"stsz", 4, ">I", 2**31 - 1), "broken_video"),
    "frames elsewhere.mp4": (lambda: patched(video(), b"stco", 8, ">I", 2**31), "broken_video"),
    "frames of garbage.mp4": (lambda: video().replace(b"\x00\x00\x01\xb6", b"\xff\xff\xff\xff"), "broken_video"),
    "a picture.mp4": (lambda: encoded(RED, "PNG"), (40, 60)),
    "text.mp4": (lambda: b"a film about a shoe", "broken_video"),
    "list of files.mp4": (
        lambda: b"ffconcat version 1.0\nfile 'good.mp4'\nfile 'file:///etc/passwd'\n",
        "broken_video",
    ),
    "subtitles.mp4": (lambda: b"1\n00:00:00,000 --> 00:00:09,000\nhello\n\n", "broken_video"),
    "session.mp4": (lambda: b"v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n", "broken_video"),
}


def outcome(root: Path, uri: str, kind: str = "image", sources: Sources = Sources()) -> str | tuple[int, int]:  # noqa: B008
    """What FetchMedia makes of one medium: the code of its issue, or the size of its frames."""
    table = pa.table({"item_id": ["a"], "title": ["a title"], "description": pa.nulls(1, pa.string())})
    table = table.append_column("media", pa.array([[{"uri": uri, "kind": kind}]], MEDIA))
    out = apply(FetchMedia(root=str(root), sources=sources), with_outcome(table))
    issues = out["issues"][0].as_py()
    pictures, _ = frame_arrays(out["frames"])
    assert out["outcome"][0].as_py() == "kept"
    assert len(issues) == (not pictures)
    if issues:
        assert issues[0]["severity"] == "degraded"
        return issues[0]["code"]
    assert out["media_digest"][0].as_py()
    return pictures[0].shape[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All hostile files."""
    root = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in FILES.items():
        (root / name).write_bytes(make())
    return root


def kind_of(name: str) -> str:
    return "video" if name.endswith(".mp4") else "image"


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(folder, name):
    start = time.process_time()
    assert outcome(folder, name, kind_of(name)) == FILES[name][1]
    assert time.process_time() - start < SECONDS


def test_no_hostile_file_costs_much_memory(folder):
    """At the limit of 50 megapixels a picture with transparency takes 200 MB; nothing may take much more."""
    command = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 300


def megabytes_for(root: Path) -> int:
    """The most memory that the files of a folder take, beyond what is taken before."""
    assert outcome(root, "point.png") == (1, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in FILES:
        outcome(root, name, kind_of(name))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


@pytest.fixture
def catalog(tmp_path) -> Path:
    """A catalogue beside a secret, with all that may lie in a folder."""
    root = tmp_path / "catalog"
    (root / "media").mkdir(parents=True)
    for name in ("media/a.png", "line\nbreak.png", "back\\slash.png", "%2e%2e.png", "item:7.png", "ünï.png"):
        (root / name).write_bytes(encoded(RED, "PNG"))
    (tmp_path / "secret.png").write_bytes(encoded(RED, "PNG"))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "inner.png").symlink_to(root / "media" / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    return root


URIS: dict[str, str | tuple[int, int]] = {
    "media/a.png": (40, 60),
    "./media/../media/a.png": (40, 60),
    "inner.png": (40, 60),
    "line\nbreak.png": (40, 60),
    "back\\slash.png": (40, 60),
    "%2e%2e.png": (40, 60),
    "item:7.png": (40, 60),
    "ünï.png": (40, 60),
    "file://{root}/media/a.png": (40, 60),
    "{root}/media/a.png": (40, 60),
    "": "unreadable",
    ".": "unreadable",
    "media": "unreadable",
    "nope.png": "missing",
    "nope\n.png": "missing",
    "..\\secret.png": "missing",
    "%2e%2e/secret.png": "missing",
    "~/secret.png": "missing",
    "../secret.png": "outside_root",
    "media/../../secret.png": "outside_root",
    "{root}/../secret.png": "outside_root",
    "/etc/passwd": "outside_root",
    "//etc/passwd": "outside_root",
    "/proc/self/environ": "outside_root",
    "file:///etc/passwd": "outside_root",
    "FILE:///etc/passwd": "outside_root",
    "local:///etc/passwd": "outside_root",
    "file://{root}/%2e%2e/secret.png": "outside_root",
    "file://localhost/etc/passwd": "outside_root",
    "link.png": "outside_root",
    "up/secret.png": "outside_root",
    "zero.png": "outside_root",
    "media/a.png\0.jpg": "outside_root",
    "loop.png": "unreadable",
    "pipe.png": "unreadable",
    "a" * 300: "unreadable",
    "a/" * 5_000: "unreadable",
    "http://[x": "unreadable",
    "file:/etc/passwd": "missing",
    "data:image/png;base64,iVBORw0KGgo=": "scheme_not_allowed",
    "ftp://example.com/a.png": "scheme_not_allowed",
    "gopher://127.0.0.1:25/_HELO": "scheme_not_allowed",
    "s3://bucket/a.png": "scheme_not_allowed",
    "memory://a.png": "scheme_not_allowed",
    "zip://a.png::file:///etc/secret.zip": "scheme_not_allowed",
    "simplecache::file:///etc/passwd": "scheme_not_allowed",
    "http://example.com/a.png": "scheme_not_allowed",
    "https://example.com/a.png": "scheme_not_allowed",
}

URLS = {  # where http is allowed; test_fetch has the redirects
    "http://127.0.0.1/a.png": "private_address",
    "http://localhost/a.png": "private_address",
    "http://2130706433/a.png": "private_address",
    "http://0x7f000001/a.png": "private_address",
    "http://0177.0.0.1/a.png": "private_address",
    "http://127.1/a.png": "private_address",
    "http://0/a.png": "private_address",
    "http://0.0.0.0:8000/a.png": "private_address",
    "http://10.0.0.1/a.png": "private_address",
    "http://169.254.169.254/latest/meta-data/": "private_address",
    "http://[::1]/a.png": "private_address",
    "http://[::ffff:127.0.0.1]/a.png": "private_address",
    "http://[64:ff9b::7f00:1]/a.png": "private_address",
    "http://[fe80::1%25lo]/a.png": "private_address",
    "https://100.64.0.1/a.png": "private_address",
    "http://１２７.０.０.１/a.png": "private_address",
    "http://%31%32%37.0.0.1/a.png": "private_address",
    "http://ann:secret@127.0.0.1/a.png": "unreadable",
    "http://127.0.0.1:99999/a.png": "unreadable",
    "http:///a.png": "unreadable",
    "http://": "unreadable",
    "ftp://example.com/a.png": "scheme_not_allowed",
    "file:///etc/passwd": "outside_root",
}


@pytest.mark.parametrize("uri", URIS)
def test_hostile_uris(catalog, uri):
    assert outcome(catalog, uri.replace("{root}", str(catalog))) == URIS[uri]


@pytest.mark.parametrize("url", URLS)
def test_hostile_urls(catalog, url):
    start = time.monotonic()
    assert outcome(catalog, url, sources=Sources(http=True)) == URLS[url]
    assert time.monotonic() - start < SECONDS


def test_a_catalogue_reached_through_a_link_still_works(catalog, tmp_path):
    (tmp_path / "elsewhere").symlink_to(catalog)
    assert outcome(tmp_path / "elsewhere", "media/a.png") == (40, 60)
    assert outcome(tmp_path / "elsewhere", "link.png") == "outside_root"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_ends_upright(orientation, format_):
    """The stored pixels are turned the other way round with numpy, so that the four corners must come back."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    turn_back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn_back[orientation](upright)))
    lossless = {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {"lossless": True}
    pixels = decode_image(encoded(stored, format_, exif=exif, **lossless), Limits())
    assert pixels.shape == upright.shape
    assert np.abs(pixels[8:-8:8, 8:-8:8].astype(int) - upright[8:-8:8, 8:-8:8]).max() < 20


@pytest.mark.parametrize(
    "name", ["animated.gif", "animated.webp", "animated.png", "cmyk.jpg", "a png.jpg", "broken exif.jpg"]
)
def test_what_can_be_read_has_its_colours(name):
    pixels = decode_image(FILES[name][0](), Limits())
    assert np.abs(pixels.mean((0, 1)) - [200, 10, 10]).max() < 12


@pytest.mark.parametrize("deep", [False, True])
def test_an_avif_cannot_have_more_pixels_than_it_says(deep):
    content = avif_that_lies(deep=deep)
    assert decode_image(content, Limits()).shape == (48, 64, 3)
    with pytest.raises(MediaError) as caught:
        decode_image(content, Limits(max_pixels=640 * 480 - 1))
    assert caught.value.code == "broken_image"


def test_headers_without_an_end_are_left_when_the_time_is_up():
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") * 2_000_000
    start = time.monotonic()
    with pytest.raises(MediaError) as caught:
        decode_image(content, Limits(decode_seconds=0.5))
    assert caught.value.code == "too_slow"
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><BaseURL>{}</BaseURL></Period></MPD>",
    ],
    ids=["hls", "concat", "dash"],
)
def test_playlists_lead_nowhere(tmp_path, playlist):
    """Neither to a file nor to a server."""
    (tmp_path / "good.mp4").write_bytes(video())
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        for target in (f"file://{tmp_path}/good.mp4", f"http://127.0.0.1:{server.getsockname()[1]}/good.mp4"):
            (tmp_path / "list.mp4").write_text(playlist.format(target))
            assert outcome(tmp_path, "list.mp4", "video") == "broken_video"
        with pytest.raises(BlockingIOError):
            server.accept()


if __name__ == "__main__":
    print(megabytes_for(Path(sys.argv[1])))  # noqa: T201 - read by test_no_hostile_file_costs_much_memory
