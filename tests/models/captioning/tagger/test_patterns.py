from __future__ import annotations

import numpy as np
import pytest

from models.captioning.tagger.patterns import name_pattern, name_surface
from models.common.colours import to_lab

SIDE = 96
Y, X = np.mgrid[:SIDE, :SIDE] / SIDE
DISC = (X - 0.5) ** 2 + (Y - 0.5) ** 2 < 0.2


def two_tones(kind: str, *, pieces: float = 7.0, turn: float = 0.0) -> np.ndarray:
    """Where the second tone is, bool [SIDE, SIDE], turned by so many degrees."""
    angle = np.deg2rad(turn)
    u, v = pieces * (X * np.cos(angle) + Y * np.sin(angle)), pieces * (Y * np.cos(angle) - X * np.sin(angle))
    column, row = np.floor(u), np.floor(v)
    if kind == "stripes":
        return v - row < 0.5
    if kind == "checks":
        return (column + row) % 2 < 1
    if kind == "dots":
        return (u - column - 0.5) ** 2 + (v - row - 0.5) ** 2 < 0.09
    bent = v + np.abs(u - column - 0.5)
    return bent - np.floor(bent) < 0.5


def coloured(second: np.ndarray, tones=((200, 40, 40), (245, 240, 230)), *, noise: float = 0.0) -> np.ndarray:
    picture = np.array(tones, np.float64)[second.astype(int)] * (1.05 - 0.2 * X)[..., None]
    picture += noise * np.random.default_rng(0).normal(size=(SIDE, SIDE, 1))
    return to_lab(np.clip(picture, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["checks", "dots", "zigzag"])
@pytest.mark.parametrize("pieces", [5.0, 7.0, 9.0])
@pytest.mark.parametrize("turn", [0.0, 10.0])
@pytest.mark.parametrize("tones", [((200, 40, 40), (245, 240, 230)), ((20, 20, 25), (150, 150, 60))])
def test_patterns_are_named_at_any_scale_turn_and_contrast(kind, pieces, turn, tones):
    assert name_pattern(coloured(two_tones(kind, pieces=pieces, turn=turn), tones, noise=3), DISC) == kind


@pytest.mark.parametrize(("turn", "way"), [(0, "horizontal"), (45, "diagonal"), (90, "vertical"), (135, "diagonal")])
def test_stripes_are_named_with_their_direction(turn, way):
    assert name_pattern(coloured(two_tones("stripes", turn=turn)), DISC) == f"{way} stripes"


def test_stripes_of_equal_lightness_are_seen():
    tones = ((200, 60, 60), (0, 130, 120))
    assert np.ptp(to_lab(np.array(tones, np.uint8))[:, 0]) < 3
    assert name_pattern(coloured(two_tones("stripes"), tones), DISC) == "horizontal stripes"


def test_shading_noise_and_the_outline_are_no_pattern():
    assert name_pattern(coloured(np.zeros((SIDE, SIDE), bool), noise=4), DISC) == "plain"
    assert name_pattern(coloured(~DISC), DISC) == "plain"
    assert name_pattern(coloured(two_tones("dots")), np.zeros((SIDE, SIDE), bool)) == "plain"


def surface(kind: str) -> np.ndarray:
    """Lightness, float32 [160, 160]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:160, :160]
    grey = np.full((160, 160), 130.0) - 0.2 * y
    if kind == "woven":
        grey *= 1 + 0.15 * np.where((x // 2 + y // 2) % 2 == 0, 1, -1)
    if kind == "speckled":
        grey[rng.random((160, 160)) < 0.06] *= 0.5
    if kind == "grainy":
        grey += 12 * rng.normal(size=grey.shape)
    if kind == "glossy":
        grey += 140 * np.exp(-(((x + 0.5 * y - 110) / 10) ** 2))
    return np.clip(grey, 0, 255).astype(np.float32)


@pytest.mark.parametrize("kind", ["smooth", "woven", "speckled", "grainy", "glossy"])
def test_surfaces_are_named(kind):
    y, x = np.mgrid[:160, :160]
    words = name_surface(surface(kind), (x - 80) ** 2 + (y - 80) ** 2 < 70**2)
    assert kind in words
    assert len(set(words) - {"glossy", "smooth"}) == (kind in ("woven", "speckled", "grainy"))
    assert ("glossy" in words) == (kind == "glossy")


def test_a_surface_that_is_too_small_is_not_judged():
    assert name_surface(surface("grainy"), np.zeros((160, 160), bool)) == []
