"""What `init` chooses by a look at the media of a catalogue."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.models.qformer.clothes import COLOURS, bag, shirt
from workflows.init import init


@pytest.mark.parametrize(("stride", "chosen"), [(1, True), (5, False)])
def test_the_shipped_captioner_is_chosen_where_it_tells_pictures_by_their_texts(
    tmp_path: Path, stride: int, chosen: bool
) -> None:
    looks = list(itertools.product((shirt, bag), COLOURS)) * 3
    titles = [f"{colour} {'t-shirt' if draw is shirt else 'handbag'}" for draw, colour in looks]
    rows = []
    for number, (draw, colour) in enumerate(looks):
        Image.fromarray(draw(colour)).save(tmp_path / f"{number}.png")
        media = [{"uri": f"{number}.png", "kind": "image"}]
        title = titles[number * stride % len(titles)]
        rows.append(json.dumps({"item_id": f"p{number}", "title": title, "media": media}))
    (tmp_path / "items.jsonl").write_text("\n".join(rows))
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    text = (tmp_path / "mine.yaml").read_text()
    settings = yaml.safe_load(text)["stages"]["interpret"] or {}
    assert (settings.get("caption", {}).get("backend") == "qformer") is chosen, text
    assert ("the shipped captioner tells pictures by the texts of their items" in text) is chosen
