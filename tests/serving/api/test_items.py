from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.serving.api.fake import ITEMS
from tests.serving.api.test_routes import refused
from tests.serving.api.test_security import bearer, line


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, "red").save(content, "PNG")
    return content.getvalue()


PICTURE = base64.b64encode(png()).decode()


def test_an_item_is_posted_once(client, fake) -> None:
    new = {"item_id": "new", "title": "Lamp", "attributes": {"colour": "red", "room": ["hall", "bath"]}}
    answer = client.post("/v1/items", json={**new, "picture": PICTURE})
    assert answer.status_code == 200, answer.text
    item = answer.json()
    assert (item["item_id"], item["run"], item["title"], item["hidden"]) == ("new", fake.run, "Lamp", False)
    assert item["attributes"] == {"colour": ["red"], "room": ["hall", "bath"]}
    assert Image.open(io.BytesIO(fake.posted["new"]["picture"])).size == (8, 8)
    assert "already" in refused(client.post("/v1/items", json=new), 409, "taken")


def test_what_is_sent_of_an_item_changes_and_nothing_else(client, fake) -> None:
    client.post("/v1/items", json={"item_id": "a/b", "title": "A"})
    assert client.patch("/v1/items/a/b", json={"hidden": True}).json()["hidden"]
    assert fake.posted["a/b"]["title"] == "A"
    assert client.patch("/v1/items/a/b", json={"title": None, "hidden": False}).json()["title"] is None
    assert fake.posted["a/b"]["picture"] is None
    refused(client.patch("/v1/items/nothing", json={"hidden": True}), 404, "not_found")


def test_an_item_is_deleted(client, fake) -> None:
    client.post("/v1/items", json={"item_id": "a/b", "title": "A"})
    assert client.delete("/v1/items/a/b").json() == {"deleted": True}
    assert fake.posted == {}
    refused(client.delete("/v1/items/a/b"), 404, "not_found")
    text = client.get("/metrics").text
    assert 'tesserec_items_total{run="fake:0123456789abcdef",what="deleted"} 1.0' in text
    assert 'tesserec_items_total{run="fake:0123456789abcdef",what="posted"} 1.0' in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"picture": "?"}, "picture: send the picture's file in base64."),
        ({"picture": base64.b64encode(b"no picture").decode()}, "picture: "),
        ({"picture": PICTURE, "uri": "a.png"}, "give a picture or its uri, not both."),
        ({"uri": "a.png"}, "uri: this service reads no URIs (`media_roots`); send the picture itself."),
        ({"item_id": ""}, "item_id: String should have at least 1 character"),
        ({"attributes": {"colour": 3}}, "attributes.colour"),
        ({"sid": "<a_1>"}, "sid: Extra inputs are not permitted"),
    ],
)
def test_a_bad_item_is_told_what_is_wrong(client, fake, change, sentence) -> None:
    answer = client.post("/v1/items", json={"item_id": "new", "title": "A", **change})
    assert answer.json()["error"]["message"].startswith(sentence)
    assert (answer.status_code, fake.posted) == (422, {})


def test_pictures_of_uris_lie_below_the_roots_alone(serve, fake, tmp_path) -> None:
    for folder in ("media", "more", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png((30, 20)))
    (tmp_path / "media" / "link.png").symlink_to(tmp_path / "other" / "a.png")
    (tmp_path / "media" / "large.png").write_bytes(bytes(3_000))
    client = serve(media_roots=[str(tmp_path / "media"), str(tmp_path / "more")], max_picture_bytes=2_000)
    for n, uri in enumerate(("a.png", str(tmp_path / "more" / "a.png"))):
        answer = client.post("/v1/items", json={"item_id": f"new {n}", "uri": uri})
        assert answer.status_code == 200, answer.text
        assert Image.open(io.BytesIO(fake.posted[f"new {n}"]["picture"])).size == (30, 20)
    wrong = {
        str(tmp_path / "other" / "a.png"): "outside_root",
        "../other/a.png": "outside_root",
        "link.png": "outside_root",
        "large.png": "too_many_bytes",
        "none.png": "missing",
        "http://192.0.2.1/a.png": "scheme_not_allowed",
    }
    for uri, code in wrong.items():
        answer = client.post("/v1/items", json={"item_id": "new", "uri": uri})
        assert refused(answer, 422, "bad_picture") == f"uri: {code}; send the picture itself."


def test_who_may_write_items(serve, tmp_path) -> None:
    (tmp_path / "keys").write_text("\n".join(line(role, role) for role in ("read", "write", "admin")))
    client = serve(open=False, keys=str(tmp_path / "keys"))
    for role, status in {"read": 403, "write": 200, "admin": 200}.items():
        new = {"item_id": role, "title": "A"}
        assert client.post("/v1/items", json=new, headers=bearer(role)).status_code == status
        assert client.patch(f"/v1/items/{ITEMS[0]}", json={"hidden": True}, headers=bearer(role)).status_code == status
        assert client.delete(f"/v1/items/{role}", headers=bearer(role)).status_code == status
    assert client.get(f"/v1/items/{ITEMS[1]}", headers=bearer("read")).status_code == 200
