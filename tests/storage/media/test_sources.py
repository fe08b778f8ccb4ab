"""A medium that was placed is the one that its catalogue meant, from wherever it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.media.limits import MediaError
from storage.media.sources import Sources, placed, resolve

URIS = ["a.jpg", "x/a%20b.jpg", "a?b.jpg", "a.jpg?v=1", "#1.jpg", "/etc/a.jpg", "../a.jpg", "item:7.jpg", "é.jpg"]
GIVEN = ["https://host/a.jpg", "S3://bucket/shop/a.jpg", "s3://other/a.jpg", "data:image/png,x"]


def found(uri: str, root: str, *roots: str) -> str:
    try:
        return resolve(uri, root, Sources(roots, http=True))
    except MediaError:
        return "refused"


@pytest.mark.parametrize("uri", URIS + GIVEN)
@pytest.mark.parametrize("root", ["s3://bucket/shop", "memory://shop", "LOCAL", "file://LOCAL"])
@pytest.mark.parametrize("elsewhere", ["s3://bucket/export", "/srv/export"])
def test_a_placed_medium_is_the_same_one(uri: str, root: str, elsewhere: str, tmp_path: Path) -> None:
    (tmp_path / "a%20b?c").mkdir()
    (tmp_path / "a%20b?c" / "a?b.jpg").touch()
    root = root.replace("LOCAL", str(tmp_path / "a%20b?c"))
    assert found(placed(uri, root), elsewhere, root) == found(uri, root)


def test_a_scheme_in_capitals_is_that_scheme() -> None:
    assert found("S3://bucket/shop/a.jpg", "s3://bucket/shop") == "s3://bucket/shop/a.jpg"
