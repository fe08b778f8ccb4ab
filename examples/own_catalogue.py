"""Turn data frames into a catalogue, check a definition that reads it, and run the first stage.

    python examples/own_catalogue.py FOLDER

FOLDER then holds the catalogue, the definition `shop.yaml` and the run. The remaining stages load models and start Ray:
`tesserec run FOLDER/shop.yaml --run-dir FOLDER/run` goes on from here.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from PIL import Image

from workflows.engine.definition import load
from workflows.engine.preflight import preflight
from workflows.engine.runner import execute
from workflows.engine.summary import summary

COLOURS = ("crimson", "navy", "olive", "gold", "teal", "black")
DEFINITION = """\
name: shop
catalog: {catalog}
stages:
  ingest:
  interpret:
  project: {{width: 64}}
  quantize: {{codebook_sizes: [16, 16]}}
  features:
  rank:
  evaluate:
  report:
"""


def write_catalogue(folder: Path) -> None:
    """Write items.parquet, interactions.parquet and a picture per item."""
    (folder / "media").mkdir(parents=True)
    ids = [f"p-{number}" for number in range(12)]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(ids))]
    for item_id, colour in zip(ids, colours, strict=True):
        Image.new("RGB", (64, 64), colour).save(folder / "media" / f"{item_id}.png")
    items = pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"Cotton scarf in {colour}" for colour in colours],
            "media": [[{"uri": f"media/{item_id}.png", "kind": "image"}] for item_id in ids],
            "attributes": [{"material": "cotton", "kind": "scarf"}] * len(ids),
        }
    )
    items.write_parquet(folder / "items.parquet")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    interactions = pl.DataFrame(
        {
            "user_id": [f"user-{number % 7}" for number in range(60)],
            "item_id": [ids[number * 5 % len(ids)] for number in range(60)],
            "timestamp": [start + timedelta(hours=number) for number in range(60)],
            "price": [9.0 + number % 4 for number in range(60)],  # any other numeric column: a context feature
        }
    )
    interactions.write_parquet(folder / "interactions.parquet")


def main(folder: Path) -> None:
    """Write, check and run."""
    write_catalogue(folder / "catalogue")
    path = folder / "shop.yaml"
    path.write_text(DEFINITION.format(catalog=folder / "catalogue"), encoding="utf-8")
    definition = load(str(path), [])  # a wrong key or value ends here, with what to write instead
    run = str(folder / "run")
    preflight(definition, run)  # what `tesserec check` does
    print(summary(execute(definition, run, until="ingest"), run))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
