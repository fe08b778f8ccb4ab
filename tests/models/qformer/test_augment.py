from __future__ import annotations

import numpy as np

from models.qformer.augment import views


def test_views_are_of_the_pixels_alone_and_keep_their_colours() -> None:
    picture = np.full((80, 60, 3), 255, np.uint8)
    picture[20:60, 10:40] = (200, 30, 40)
    found = views(picture, 8)
    assert len(found) == 8
    assert found[0] is picture
    again = views(picture.copy(), 8)
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))
    for view in found[1:]:
        assert view.dtype == np.uint8
        assert view.shape[0] >= 60 * 0.99
        red = view[(view[..., 0] > 120) & (view[..., 1] < 100)]
        assert len(red) > 0.2 * view.shape[0] * view.shape[1]
        assert np.abs(np.median(red, axis=0) - (200, 30, 40)).max() < 40
    assert len({view.tobytes() for view in found}) == 8


def test_a_picture_of_one_pixel_has_views() -> None:
    assert len(views(np.zeros((1, 1, 3), np.uint8), 3)) == 3
