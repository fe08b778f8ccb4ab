"""How well the captioner names what the fashion photos show, beside the tagger, a probe, and chance.

python -m benchmarks.captioner --data DIR --work DIR --out FILE [--align 600] [--write 1000] [--no-mask] [--seed 0]
python -m benchmarks.captioner --data DIR --work DIR --out FILE --weights models/qformer/products

Trains a captioner from scratch on the training and validation photos, as `tesserec adapt captioner` does (the run stays
in `--work`, and goes on there where it was killed), and judges it on the 1,600 test photos, which nothing has seen.
With `--weights` it judges a captioner that is there, and trains nothing.

qformer, tagger, probe: shares of the photos whose article type and colour are named, exactly and by a synonym
(benchmarks/fashion_words.yaml); shuffled: of the captioner's captions beside other photos; chance: what that is on
average, the sum of p(said) p(true). recall_at_10: for how many of the first 800 test photos their sentence finds them
among ten; ridge_recall_at_10: the same by a ridge from the same frozen features to MiniLM's vectors of the sentences,
its penalty chosen on the validation photos. encoder_share: photos per second that are captioned, over those that pass
the frozen encoder alone, batches of 32, in turns, on one thread, as an actor of the stream has. cider and rouge_l:
against the sentences of the photo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.captioner_probe import probe
from benchmarks.fashion import Photos, chance, naming, read_photos, said_of, write_catalog
from benchmarks.machine import machine, with_peers
from models.captioning.captioner import Captioner, Context
from models.captioning.qformer import QFormerCaptioner
from models.captioning.tagger.tagger import Tagger
from models.common.encoders import image_encoder
from models.common.threads import one_thread
from models.embedding.local import LocalTexts
from models.embedding.qformer import QFormerImages, QFormerTexts
from models.evaluation.pairs import ahead
from models.qformer.sentences import sentences, text_of
from models.qformer.vision import look, pooled
from models.qformer.words import seen_words
from storage.manifest import require_manifest
from storage.run import RunDir
from workflows.engine.definition import ADAPT_CAPTIONER, load
from workflows.engine.runner import execute

BATCH, ROUNDS = 32, 8  # of the speeds
SEARCHED, CUT = 800, 10
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance
VIEWS = 2
ROWS = 200  # photos that are decoded at a time


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="products.csv and images/")
    parser.add_argument("--work", required=True, type=Path, help="folder for the catalogue, the run and features")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--align", type=int, default=600, help="steps of the first stage; 0 leaves it out")
    parser.add_argument("--write", type=int, default=1000, help="steps of the second stage")
    parser.add_argument("--no-mask", action="store_true", help="texts of one photo are negatives of one another")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", help="folder of a captioner's weights, which are judged as they are")
    arguments = parser.parse_args()
    with_peers("pycocoevalcap", "benchmarks.captioner")
    photos = read_photos(arguments.data)
    report: dict[str, Any] = {"machine": machine(), "weights": arguments.weights}
    if not arguments.weights:
        run = RunDir(train(photos, arguments))
        report |= {
            "weights": run.uri("models", "captioner"),
            "seconds": require_manifest(run.root).stages["adapt_captioner"].seconds,
            "curve": run.read_json("metrics", "adapt_captioner.json")["curve"],
        }
    report |= judge(photos, all_features(photos, arguments.work), report["weights"])
    arguments.out.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "curve"}, indent=2))


def train(photos: Photos, arguments: argparse.Namespace) -> str:
    """Returns the folder of the run."""
    catalog, root = arguments.work / "catalog", str(arguments.work / f"run-{arguments.seed}")
    if not catalog.exists():
        write_catalog(photos, range(photos.split["valid"].stop), catalog)
    settings = {
        "base": "scratch",
        "views": VIEWS,
        "items": photos.split["valid"].stop,
        "held_out": 1 / 9,
        "recipe": {
            "align": {"steps": arguments.align},
            "write": {"steps": arguments.write},
            "mask_own": not arguments.no_mask,
        },
        "fetch": {"roots": [str(photos.files[0].resolve().parent)]},
    }
    keys = [f"catalog={catalog}", f"seed={arguments.seed}", f"stages.adapt_captioner={json.dumps(settings)}"]
    execute(load(str(ADAPT_CAPTIONER), keys), root)
    return root


def all_features(photos: Photos, work: Path) -> np.ndarray:
    """Returns the features of all photos, from a file where an earlier call has left them."""
    path = work / "features.npy"
    if not path.exists():
        starts = range(0, len(photos.files), ROWS)
        blocks = [look(photos.pictures(range(at, min(at + ROWS, len(photos.files))))) for at in starts]
        np.save(path, np.concatenate(blocks))
    features: np.ndarray = np.load(path, mmap_mode="r")
    return features


def judge(photos: Photos, features: np.ndarray, weights: str) -> dict[str, Any]:
    """Returns the scores on the test photos; sentences have the words that the training photos tell."""
    test = range(photos.split["test"].start, photos.split["test"].stop)
    table, pictures = photos.table[photos.split["test"]], photos.pictures(test)
    captions = {"qformer": captioned(QFormerCaptioner(weights), pictures), "tagger": captioned(Tagger(), pictures)}
    order = np.random.default_rng(0).permutation(len(test))
    told = [(title, list(attributes.items())) for title, attributes in map(said_of, photos.table.rows(named=True))]
    train = photos.split["train"]
    words = seen_words([text_of(*row) for row in told[train]], pooled(features, np.arange(train.stop)))
    said = [sentences(title, attributes, words) for title, attributes in told]
    true = [said[row] or [""] for row in test]
    return {
        "words": len(words),
        "qformer": naming(captions["qformer"], table),
        "tagger": naming(captions["tagger"], table),
        "probe": probe(photos, features),
        "shuffled": naming([captions["qformer"][row] for row in order], table),
        "chance": chance(captions["qformer"], table),
        "recall_at_10": recall(photos, weights, [row[0] for row in true]),
        "ridge_recall_at_10": ridge_recall(photos, features, [row[0] if row else "" for row in said]),
        **worded(captions["qformer"], true),
        "encoder_share": encoder_share(weights, pictures),
        "examples": [
            {"product_id": table["product_id"][row], "title": table["title"][row], "caption": captions["qformer"][row]}
            for row in order[:30].tolist()
        ],
    }


def captioned(captioner: Captioner, pictures: list[np.ndarray]) -> list[str]:
    """Returns the captions of pictures; an empty one where the model fails."""
    captioner.load()
    found = captioner.caption(pictures, [Context()] * len(pictures))
    return [text if isinstance(text, str) else "" for text in found]


def recall(photos: Photos, weights: str, texts: list[str]) -> float:
    """Returns for how many of the first test photos their sentence finds them among ten."""
    first = photos.split["test"].start
    seen = QFormerImages(weights).embed_images(photos.pictures(range(first, first + SEARCHED)))
    read = QFormerTexts(weights).embed_texts(texts[:SEARCHED]).vectors
    return float((ahead(read @ seen.T) < CUT).mean())


def ridge_recall(photos: Photos, features: np.ndarray, texts: list[str]) -> float:
    """Returns the same by a ridge from the pooled features to a sentence encoder's vectors."""
    embedder = LocalTexts()
    embedder.load()
    x = pooled(features, np.arange(len(features))).double()
    y = torch.from_numpy(embedder.embed_texts([text or "nothing" for text in texts]).vectors).double()
    train = photos.split["train"]
    x = (x - x[train].mean(0)) / x[train].std(0).clamp_min(1e-3)
    mean = y[train].mean(0)
    moments, sums = x[train].T @ x[train], x[train].T @ (y[train] - mean)
    scores = []
    for penalty in PENALTIES:
        weights = torch.linalg.solve(moments + penalty * train.stop * torch.eye(x.shape[1]), sums)
        found = {}
        for name in ("valid", "test"):
            rows = slice(photos.split[name].start, photos.split[name].start + SEARCHED)
            seen = torch.nn.functional.normalize(x[rows] @ weights + mean, dim=1)
            found[name] = float((ahead((y[rows] @ seen.T).numpy()) < CUT).mean())
        scores.append((found["valid"], found["test"]))
    return max(scores)[1]


def worded(captions: list[str], true: list[list[str]]) -> dict[str, float]:
    """Returns CIDEr-D and ROUGE-L by the reference code of the COCO captions challenge."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    def plain(text: str) -> str:
        return " ".join(text.lower().replace(",", " ").replace(".", " ").split())

    said = {row: [plain(text)] for row, text in enumerate(captions)}
    truth = {row: [plain(text) for text in texts] for row, texts in enumerate(true)}
    return {
        "cider": float(Cider().compute_score(truth, said)[0]),
        "rouge_l": float(Rouge().compute_score(truth, said)[0]),
    }


def encoder_share(weights: str, pictures: list[np.ndarray]) -> dict[str, Any]:
    """Returns photos per second of captions and of the encoder alone, in turns, on one thread, and their ratio."""
    captioner, encoder = QFormerCaptioner(weights), image_encoder()
    captioner.load()
    ways: dict[str, Callable[[list[np.ndarray]], Any]] = {
        "captions": lambda batch: captioner.caption(batch, [Context()] * len(batch)),
        "encoder": encoder.encode,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with one_thread():
        for turn in range(ROUNDS + 1):
            batch = pictures[turn * BATCH : (turn + 1) * BATCH]
            for name, work in ways.items():
                began = time.perf_counter()
                work(batch)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    ratios = [mine / theirs for mine, theirs in zip(seconds["encoder"], seconds["captions"], strict=True)]
    rates = {f"{name}_per_second": BATCH / statistics.median(found) for name, found in seconds.items()}
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), **rates}


if __name__ == "__main__":
    main()
