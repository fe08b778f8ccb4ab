"""Photos and clips of the embedded catalogue: a silhouette with colour, pattern and material in front of clutter.

Everything is drawn larger and then reduced, which antialiases the edges. Nothing depends on fonts, files or threads:
the same look and seed give the same bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from workflows.catalogs.synthetic.silhouettes import SILHOUETTES, draw_silhouette

Style = Literal["fill", "line"]

SIZE = 224  # pixels, both sides
DRAWN = 320  # pixels, both sides, while drawing
FRAMES, FRAME_RATE = 24, 12  # two seconds

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 40),
    "orange": (240, 130, 25),
    "yellow": (245, 210, 40),
    "green": (45, 150, 70),
    "blue": (35, 85, 200),
    "purple": (125, 55, 165),
    "pink": (245, 135, 175),
    "brown": (120, 75, 40),
    "black": (32, 32, 36),
    "white": (242, 242, 240),
}
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag")
MATERIALS = ("matte", "glossy", "woven", "speckled")
CATEGORIES = tuple(SILHOUETTES)

# For identical bytes: the output depends on the number of threads, and x264's assembly varies from call to call.
X264 = {"crf": "23", "preset": "ultrafast", "x264-params": "threads=1:asm=0"}

_CREAM, _CHARCOAL, _PAPER = (246, 240, 226), (52, 50, 56), (176, 174, 170)
_Y, _X = np.mgrid[0:DRAWN, 0:DRAWN].astype(np.float32) / DRAWN
_THREADS = 0.8 + 0.32 * ((np.floor(_X * 64) + np.floor(_Y * 64)) % 2)  # woven over and under, as lightness


@dataclass(frozen=True)
class Look:
    """Visual attributes of an item; `clutter` is the number of objects behind it."""

    category: str
    colour: str
    pattern: str
    material: str
    clutter: int


def draw_photo(look: Look, rng: np.random.Generator, style: Style) -> bytes:
    """Returns a JPEG of the item, 224 x 224."""
    background, layer = _draw_scene(look, rng, style)
    buffer = io.BytesIO()
    _compose(background, layer).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def draw_clip(look: Look, rng: np.random.Generator, style: Style) -> bytes:
    """Returns a two-second MP4 (H.264, 224 x 224, 12 frames a second) in which the item sways and drifts."""
    background, layer = _draw_scene(look, rng, style)
    phase, drift = rng.uniform(0, 2 * np.pi), rng.uniform(-16, 16, size=2)
    frames = []
    for time in np.linspace(-1.0, 1.0, FRAMES):
        moved = layer.rotate(
            8 * float(np.sin(np.pi * time + phase)),
            Image.Resampling.BILINEAR,
            translate=(round(drift[0] * time), round(drift[1] * time)),
        )
        frames.append(_compose(background, moved))
    return _encode_mp4(frames)


def _encode_mp4(frames: list[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=X264)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return buffer.getvalue()


def _draw_scene(look: Look, rng: np.random.Generator, style: Style) -> tuple[Image.Image, Image.Image]:
    """Returns the background (RGB) and the item (RGBA), both 224 x 224."""
    background = _draw_background(look.clutter, rng, style)
    layer = _draw_item(look, rng, style)
    zoom, stretch = rng.uniform(0.66, 0.88), rng.uniform(0.92, 1.08)
    width, height = round(SIZE * zoom * stretch), round(SIZE * zoom / stretch)
    layer = layer.resize((width, height), Image.Resampling.BILINEAR)
    layer = layer.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR, expand=True)
    place = [round((SIZE - side) / 2 + rng.uniform(-0.05, 0.05) * SIZE) for side in layer.size]
    scene = Image.new("RGBA", (SIZE, SIZE))
    scene.paste(layer, (place[0], place[1]))
    return background, scene


def _compose(background: Image.Image, layer: Image.Image) -> Image.Image:
    """Pastes the item onto the background, with a soft shadow."""
    alpha = layer.getchannel("A")
    shadow = ImageChops.offset(alpha, 4, 6).filter(ImageFilter.BoxBlur(5)).point(lambda value: value * 0.4)
    photo = Image.composite(Image.new("RGB", layer.size, (30, 28, 32)), background, shadow)
    photo.paste(layer.convert("RGB"), mask=alpha)
    return photo


def _draw_background(clutter: int, rng: np.random.Generator, style: Style) -> Image.Image:
    """Draws a muted gradient with `clutter` pale, blurred objects; in line style, paper with pencil lines."""
    muted = rng.integers(150, 225) + rng.integers(-14, 15, size=(2 + clutter, 3))
    if style == "line":
        scene = Image.new("RGB", (DRAWN, DRAWN), _PAPER)
    else:
        ends = Image.fromarray(muted[:2, None].astype(np.uint8))  # two pixels, one above the other
        scene = ends.resize((DRAWN, DRAWN), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(scene)
    for tone in muted[2:] + rng.integers(-45, 30, size=(clutter, 1)):
        x, y = rng.uniform(-0.1, 0.95, size=2) * DRAWN
        w, h = rng.uniform(0.08, 0.35, size=2) * DRAWN
        colour = tuple(int(value) for value in np.clip(tone, 0, 255))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        if style == "line":
            shape((x, y, x + w, y + h), outline=(140, 138, 134), width=2)
        else:
            shape((x, y, x + w, y + h), fill=colour)
    scene = scene.resize((SIZE, SIZE), Image.Resampling.BOX)
    return scene if style == "line" else scene.filter(ImageFilter.BoxBlur(1.5))


def _draw_item(look: Look, rng: np.random.Generator, style: Style) -> Image.Image:
    """Draws the item alone (RGBA, 320 x 320), with slightly random lightness and hue."""
    body, trim = draw_silhouette(look.category, DRAWN)
    base = np.clip(np.array(COLOURS[look.colour]) * rng.uniform(0.9, 1.08) + rng.uniform(-10, 10, 3), 0, 255)
    pattern = _draw_pattern(look.pattern, rng)
    surface = _ink_lines if style == "line" else _shade
    colours = surface(base.astype(np.float32), pattern, look.material, rng)
    layer = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    alpha = ImageChops.lighter(body, trim)
    if style == "fill":
        layer.paste(tuple(int(value) for value in base * 0.55 + 18), mask=trim)
    else:
        outline = ImageChops.lighter(_outline(body), _outline(trim))
        layer.paste(tuple(int(value) for value in base), mask=outline)
        alpha = ImageChops.lighter(alpha, outline)
    layer.putalpha(alpha)
    return layer


def _outline(mask: Image.Image) -> Image.Image:
    """Returns a line along the edge of a mask."""
    return mask.filter(ImageFilter.BoxBlur(1.5)).point(lambda value: 255 if 12 < value < 243 else 0)


def _draw_pattern(pattern: str, rng: np.random.Generator) -> np.ndarray:
    """Returns where the second colour goes: bool [320, 320]."""
    period, shift = rng.uniform(0.1, 0.16), rng.uniform(0, 1)
    x, y = _X / period + np.float32(shift), _Y / period
    column, row = np.floor(x), np.floor(y)
    if pattern == "stripes":
        return y - row < 0.45
    if pattern == "dots":
        x = x + 0.5 * row  # shifts every second row by half a period
        return (x - np.floor(x) - 0.5) ** 2 + (y - row - 0.5) ** 2 < 0.09
    if pattern == "checks":
        return (column + row) % 2 < 1
    if pattern == "zigzag":
        y = y + np.abs(x - column - 0.5)
        return y - np.floor(y) < 0.42
    return np.zeros_like(_X, dtype=bool)


def _shade(base: np.ndarray, pattern: np.ndarray, material: str, rng: np.random.Generator) -> np.ndarray:
    """Returns the surface colours (float [320, 320, 3]) of a filled item."""
    second = np.array(_CHARCOAL if base.mean() > 150 else _CREAM, dtype=np.float32)
    light, shine = 1.04 - 0.14 * _Y, None
    if material == "glossy":
        light = 1.08 - 0.38 * _Y
        across = _X * 0.9 + _Y * 0.45 - np.float32(rng.uniform(0.45, 0.6))
        shine = 150 * np.exp(-((across / 0.05) ** 2)) + 70 * np.exp(-(((across - 0.16) / 0.03) ** 2))
    elif material == "woven":
        light = light * _THREADS
    elif material == "speckled":
        light = np.where(_grain(rng), 0.45 * light, light)
    colours = np.stack([base, second])[pattern.astype(np.intp)] * light[..., None]
    return colours if shine is None else colours + shine[..., None]


def _ink_lines(base: np.ndarray, pattern: np.ndarray, material: str, rng: np.random.Generator) -> np.ndarray:
    """Returns the colours (float [320, 320, 3]) of a line drawing: edges of the pattern, hatching for the material."""
    ink = (pattern != np.roll(pattern, 3, 0)) | (pattern != np.roll(pattern, 3, 1))
    if material == "glossy":
        across = (_X * 0.9 + _Y * 0.45 - np.float32(rng.uniform(0.45, 0.6))) / 0.05
        ink |= (np.abs(across) < 1.6) & (across % 1 < 0.3)
    elif material == "woven":
        ink |= (_X * 40 % 1 < 0.2) | (_Y * 40 % 1 < 0.2)
    elif material == "speckled":
        ink |= _grain(rng)
    return np.where(ink[..., None], base, np.array(_PAPER, dtype=np.float32) + 14)


def _grain(rng: np.random.Generator) -> np.ndarray:
    """Draws random flecks: bool [320, 320]."""
    fleck = 4  # pixels
    cells = rng.random((DRAWN // fleck, DRAWN // fleck)) < 0.14
    return cells.repeat(fleck, 0).repeat(fleck, 1)
