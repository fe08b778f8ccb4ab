from __future__ import annotations

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import UserError
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve, shown


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


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1/a.jpg", "HTTPS://host/a.jpg", "s3://bucket/a.jpg", "memory://a.jpg", "data:image/png;base64,"],
)
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


def test_further_roots_hold_absolute_uris_and_nothing_beside_them(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.jpg").write_bytes(b"b")
    (other / "out").symlink_to(tmp_path / "secret.jpg")
    for place in (str(other), f"file://{other}", f"file://{other}/"):
        sources = Sources(roots=(place, "s3://bucket/shared"))
        for uri in (f"{other}/b.jpg", f"file://{other}/b.jpg", f"file://{other}/x/%2e%2e/b.jpg"):
            assert resolve(uri, str(root), sources) == str(other / "b.jpg")
        assert resolve("media/a.jpg", str(root), sources) == str(root / "media" / "a.jpg")
        assert resolve("s3://bucket/shared/a.jpg", str(root), sources) == "s3://bucket/shared/a.jpg"
        for uri in (f"{tmp_path}/secret.jpg", f"{other}2/b.jpg", f"{other}/out", f"file://{other}/%2e%2e/secret.jpg"):
            assert code(resolve, uri, str(root), sources) == "outside_root"
        for uri in ("s3://bucket/a.jpg", "s3://bucket/shared/../a.jpg", "s3://bucket/shared2/a.jpg"):
            assert code(resolve, uri, str(root), sources) == "outside_root"
        assert code(resolve, "gs://bucket/shared/a.jpg", str(root), sources) == "scheme_not_allowed"
    assert code(resolve, f"{other}/b.jpg", str(root)) == "outside_root"


def test_a_remote_catalogue_may_have_local_media(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    remote = "s3://bucket/catalog"
    assert resolve(f"file://{tmp_path}/a.jpg", remote, Sources(roots=(str(tmp_path),))) == str(tmp_path / "a.jpg")
    assert code(resolve, f"file://{tmp_path}/a.jpg", remote) == "scheme_not_allowed"


def test_http_is_for_those_who_ask_for_it():
    url = "https://host/a.jpg?size=2"
    assert resolve(url, "/catalog", Sources(http=True)) == url
    assert resolve("a.jpg", "https://host/catalog", Sources(http=True)) == "https://host/catalog/a.jpg"
    assert code(resolve, "a.jpg", "https://host/catalog") == "scheme_not_allowed"


@pytest.mark.parametrize("root", ["media", "./media", "http://host/media", "https://host"])
def test_roots_that_cannot_be_are_mistakes(root):
    with pytest.raises(UserError, match="Media root"):
        Sources(roots=(root,))


def test_chains_of_file_systems_are_refused():
    for uri in ("memory://catalog/a::file:///etc/passwd", "simplecache::memory://catalog/a"):
        assert code(resolve, uri, "memory://catalog") in ("scheme_not_allowed", "outside_root")


def test_a_catalogue_may_be_reached_through_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert resolve("media/a.jpg", str(tmp_path / "link")) == str(root / "media" / "a.jpg")


def test_what_is_no_regular_file_is_not_waited_for(root):
    os.mkfifo(root / "pipe")
    assert code(read_limited, str(root / "pipe"), Limits()) == "unreadable"
    assert code(read_limited, "/dev/zero", Limits()) == "unreadable"


def test_a_link_that_takes_a_files_place_is_not_followed(root, tmp_path):
    path = resolve("media/a.jpg", str(root))
    (root / "media" / "a.jpg").unlink()
    (root / "media" / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    assert code(read_limited, path, Limits()) == "unreadable"


PARTS = st.sampled_from(["..", ".", "media", "a.jpg", "link.jpg", "", "%2e%2e", "~", "file:", "catalog", "secret.jpg"])


@given(st.lists(PARTS, max_size=6), st.sampled_from(["", "/", "file://", "file:///"]))
def test_no_path_leads_out(tmp_path_factory, parts, prefix):
    folder = tmp_path_factory.getbasetemp() / "no_path_leads_out"
    (folder / "catalog" / "media").mkdir(parents=True, exist_ok=True)
    (folder / "secret.jpg").write_bytes(b"secret")
    if not (folder / "catalog" / "media" / "link.jpg").is_symlink():
        (folder / "catalog" / "media" / "link.jpg").symlink_to(folder / "secret.jpg")
    try:
        found = resolve(prefix + "/".join(parts), str(folder / "catalog"))
    except MediaError:
        return
    assert os.path.realpath(found) == found
    assert f"{found}/".startswith(f"{folder}/catalog/")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://ann:secret@host/a.jpg?signature=secret", "https://host/a.jpg"),
        ("s3://key:secret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("https://host/a@b.jpg", "https://host/a@b.jpg"),
        ("media/a@b?.jpg", "media/a@b?.jpg"),
        ("data:image/png;base64,iVBORw0KGgo=", "data:image/png…"),
        ("DATA:,a", "DATA:…"),
        ("m/" * 100, "m/" * 100),
        ("m/" * 900, "m/" * 100 + "…"),
        ("line\nbreak.png", "line\nbreak.png"),
    ],
)
def test_uris_are_shown_without_secrets(uri, expected):
    assert shown(uri) == expected
