from __future__ import annotations

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage.limits import Limits, MediaError, read_limited, resolve


@pytest.fixture
def root(tmp_path):
    catalog = tmp_path / "catalog"
    (catalog / "media").mkdir(parents=True)
    (catalog / "media" / "a.jpg").write_bytes(b"x" * 100)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (catalog / "media" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return catalog


def code(call, *args):
    with pytest.raises(MediaError) as caught:
        call(*args)
    return caught.value.code


def test_relative_and_absolute_paths_inside_the_root_resolve(root):
    inside = str((root / "media" / "a.jpg").resolve())
    assert resolve("media/a.jpg", str(root)) == inside
    assert resolve(f"file://{inside}", str(root)) == inside
    assert resolve("media/../media/a.jpg", str(root)) == inside


@pytest.mark.parametrize(
    "uri", ["../secret.jpg", "media/link.jpg", "/etc/passwd", "file:///etc/passwd", "media/../../secret.jpg", "a\x00b"]
)
def test_what_leaves_the_root_is_refused(root, uri):
    assert code(resolve, uri, str(root)) == "outside_root"


@pytest.mark.parametrize("uri", ["http://127.0.0.1/a.jpg", "s3://bucket/a.jpg", "memory://a.jpg"])
def test_other_schemes_are_refused(root, uri):
    assert code(resolve, uri, str(root)) == "scheme_not_allowed"


def test_what_is_no_uri_or_path_is_unreadable(root):
    (root / "loop").symlink_to(root / "loop")
    for uri in ("http://[x", "loop", "loop/a.jpg", "\ud800.jpg", "a" * 5_000):
        assert code(lambda u: read_limited(resolve(u, str(root)), Limits()), uri) == "unreadable"
    assert code(resolve, "s3://[x", "s3://bucket/catalog") == "unreadable"


@pytest.mark.parametrize("error", [RuntimeError("the store is closed"), PermissionError("no"), KeyError("token")])
def test_whatever_a_store_raises_makes_a_medium_unreadable(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(MemoryFileSystem, "open", refuse)
    assert code(read_limited, "memory://catalog/a.jpg", Limits()) == "unreadable"


def test_remote_roots_hold_their_bounds():
    assert resolve("media/a.jpg", "s3://bucket/catalog") == "s3://bucket/catalog/media/a.jpg"
    assert code(resolve, "../other/a.jpg", "s3://bucket/catalog") == "outside_root"
    assert code(resolve, "s3://bucket/catalog2/a.jpg", "s3://bucket/catalog") == "outside_root"


def test_reading_is_bounded(root):
    path = str(root / "media" / "a.jpg")
    assert len(read_limited(path, Limits(max_bytes=100))) == 100
    assert code(read_limited, path, Limits(max_bytes=99)) == "too_many_bytes"
    assert code(read_limited, str(root / "nope"), Limits()) == "missing"
    assert code(read_limited, str(root), Limits()) == "unreadable"
    (root / "empty").touch()
    assert code(read_limited, str(root / "empty"), Limits()) == "empty"
