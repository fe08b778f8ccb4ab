"""Compares quantizers on real text vectors: quality on held-out items, seconds, and the cost of a million vectors.

python -m benchmarks.quantizer --data DIR --out FILE [--seeds 5] [--rows 1000000]

The texts of Amazon Beauty (12,101) are embedded once with MiniLM and cached. A tenth of them, different for every seed,
is held out; the mean and deviation of the rest standardise the columns of both. All figures are measured in that space:
cosine and mean squared error between held-out items and their reconstruction; usage and collisions over all items;
neighbour overlap@10 of held-out items among all. Every variant (quantizer with settings) gets the same rows, steps and
latent width. The clock pauses while an unfinished variant is measured. The peers need `.venv-bench`
(`make bench-setup`), where this script restarts itself if they are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import quantizer_peers as peers
from benchmarks.machine import machine, with_peers
from models.embedding.local import LocalTexts
from models.semantic_ids.kmeans import BLOCK_ROWS
from models.semantic_ids.neighbours import neighbour_overlap
from models.semantic_ids.quality import collisions, usage
from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, Quantizer
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.rqvae import Schedule, fit_rqvae
from models.semantic_ids.training_rows import collect
from storage.cache import Cache

SIZES = (256, 256, 256)
PRESET = (4096, 2048, 1024)
HIDDEN = (128,)
WATCH_EVERY = 50


class Variant(NamedTuple):
    """A finished fit: its encoder and decoder, its seconds, and its held-out cosine over time, (seconds, cosine)."""

    peer: peers.Peer
    seconds: float
    curve: list[tuple[float, float]]


class Clock:
    """Counts the seconds since the start, without those spent in `measure`."""

    def __init__(self, held_out: torch.Tensor) -> None:
        self._held_out, self._paused, self._start = held_out, 0.0, time.perf_counter()
        self.curve: list[tuple[float, float]] = []

    def seconds(self) -> float:
        """Returns the seconds of the fit so far."""
        return time.perf_counter() - self._start - self._paused

    def measure(self, peer: peers.Peer) -> None:
        """Records the held-out cosine of an unfinished variant."""
        now, began = self.seconds(), time.perf_counter()
        self.curve.append((now, cosine(peer, self._held_out)))
        self._paused += time.perf_counter() - began


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with items.tsv")
    parser.add_argument("--out", help="file for the JSON object, beside stdout")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors of the large fit")
    parser.add_argument("--only", nargs="*", help="variants to run")
    arguments = parser.parse_args()
    with_peers("vector_quantize_pytorch", "benchmarks.quantizer")
    vectors = embeddings(Path(arguments.data) / "items.tsv")
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        train, held_out = split(vectors, seed)
        for name, fit in VARIANTS.items():
            if arguments.only is None or name in arguments.only:
                runs.setdefault(name, []).append(judged(name, fit, train, held_out, seed))
    result: dict[str, Any] = {**machine(), "items": len(vectors), "seeds": arguments.seeds}
    result["methods"] = summary(runs)
    result["seconds_to_vq_pytorch"] = race(runs)
    result["preset"] = preset(vectors, runs) if arguments.only is None else None
    result |= large(arguments.rows)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def embeddings(file: Path) -> np.ndarray:
    """Returns MiniLM vectors of the items' texts, float32 [N, 384], cached by content."""
    texts = [line.split("\t", 1)[1] for line in file.read_text(encoding="utf-8").splitlines()]
    folder = os.environ.get("TESSEREC_CACHE") or str(Path.home() / ".cache" / "tesserec")
    cache, key = Cache(folder), hashlib.blake2b("\n".join(texts).encode(), digest_size=16).digest()
    found = cache.get_many("benchmark-texts", [key])
    if key not in found:
        cache.put_many("benchmark-texts", {key: LocalTexts().embed_texts(texts).vectors.tobytes()})
        found = cache.get_many("benchmark-texts", [key])
    return np.frombuffer(found[key], np.float32).reshape(len(texts), -1)


def split(vectors: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the standardised rows to fit on and those held out."""
    order = np.random.default_rng(seed).permutation(len(vectors))
    held_out, train = vectors[order[: len(order) // 10]], vectors[order[len(order) // 10 :]]
    deviation = train.std(0)
    deviation = np.where(deviation > 1e-6, deviation, 1)
    return tuple(torch.from_numpy((part - train.mean(0)) / deviation) for part in (train, held_out))  # type: ignore[return-value]


def ours(
    train: torch.Tensor, held_out: torch.Tensor, seed: int, *, sizes: tuple[int, ...] = SIZES, **options: Any
) -> Variant:
    """Fits one of our quantizers; `options` replace its defaults."""
    method = options.pop("method")
    width = train.shape[1]
    clock = Clock(held_out)
    vectors = collect([(train.numpy(), np.empty((len(train), 0), np.float32))], seed=seed)
    if method == RQKMEANS:
        fitted = fit_rqkmeans(vectors, Architecture(method, width, sizes, width), seed=seed, **options)
        return Variant(fitted, clock.seconds(), clock.curve)
    shape = Architecture(method, width, sizes, width, HIDDEN)

    def report(metrics: dict[str, float], snapshot: Callable[[], dict[str, torch.Tensor]]) -> None:
        if metrics["step"] % WATCH_EVERY == 0:
            state = snapshot()
            unfinished = Quantizer(shape)
            names = unfinished.state_dict()
            unfinished.load_state_dict({name: state[f"model.quantizer.{name}"] for name in names})
            clock.measure(unfinished)

    fitted = fit_rqvae(vectors, shape, Schedule(**options), seed=seed, report=report)
    return Variant(fitted, clock.seconds(), clock.curve)


def peer(train: torch.Tensor, held_out: torch.Tensor, seed: int, *, fit: Callable[..., peers.Peer]) -> Variant:
    """Fits a peer with our steps, batches, learning rate and widths."""
    settings = peers.Settings(
        steps=Schedule.steps,
        batch_size=Schedule.batch_size,
        learning_rate=Schedule.learning_rate,
        latent_dim=train.shape[1],
        hidden_dims=HIDDEN,
        codebook_sizes=SIZES,
        watch_every=WATCH_EVERY,
    )
    clock = Clock(held_out)
    fitted = fit(train, settings, seed, clock.measure)
    return Variant(fitted, clock.seconds(), clock.curve)


VARIANTS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Variant]] = {
    "rqvae": partial(ours, method=RQVAE),
    "vq_pytorch_in_ours": partial(peer, fit=peers.fit_vq_pytorch_residual),
    "rqkmeans": partial(ours, method=RQKMEANS),
    "vq_pytorch_in_mlps": partial(peer, fit=peers.fit_vq_pytorch),
    "semantic_id": partial(peer, fit=peers.fit_semantic_id),
    "semantic_id_rqvae": partial(peer, fit=peers.fit_semantic_id_rqvae),
    "rqkmeans_balanced": partial(ours, method=RQKMEANS, balanced=True),
}


@torch.no_grad()
def cosine(variant: peers.Peer, rows: torch.Tensor) -> float:
    """Returns the mean cosine between rows and their reconstruction."""
    return float(torch.cosine_similarity(rows, variant.decode(variant.encode(rows))).mean())


def judged(
    name: str, fit: Callable[..., Variant], train: torch.Tensor, held_out: torch.Tensor, seed: int
) -> dict[str, Any]:
    """Fits a variant and measures it."""
    variant = fit(train, held_out, seed)
    figures = {**quality(variant.peer, train, held_out), "seconds": variant.seconds, "curve": variant.curve}
    print(name, seed, {key: value for key, value in figures.items() if key != "curve"}, file=sys.stderr, flush=True)
    return figures


@torch.no_grad()
def quality(
    variant: peers.Peer, train: torch.Tensor, held_out: torch.Tensor, sizes: tuple[int, ...] = SIZES
) -> dict[str, Any]:
    """Returns all figures except the seconds."""
    rows = torch.cat([held_out, train])
    codes = variant.encode(rows).long()
    found = variant.decode(codes[: len(held_out)])
    overlap = neighbour_overlap(rows, codes, variant.decode, torch.arange(len(held_out)))
    return {
        "cosine": cosine(variant, held_out),
        "mse": float((held_out - found).square().mean()),
        "usage": usage(codes.numpy(), sizes)["usage"],
        "collision_share": collisions(codes.numpy())["share"],
        "neighbour_overlap": overlap["decoded"],
        "neighbour_overlap_prefix": overlap["prefix"],
        "train_cosine": cosine(variant, train),
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns mean and standard deviation over seeds of every figure; `vq_pytorch` is the better of its two."""
    found = {
        name: {key: spread([figures[key] for figures in variants]) for key in variants[0] if key != "curve"}
        for name, variants in runs.items()
    }
    versions = [name for name in found if name.startswith("vq_pytorch")]
    if versions:
        found["vq_pytorch"] = found[max(versions, key=lambda name: found[name]["cosine"]["mean"])]
    return found


def spread(values: list[Any]) -> Any:
    """Returns {mean, spread} of numbers, or of lists by position."""
    if isinstance(values[0], list):
        return [spread(list(level)) for level in zip(*values, strict=True)]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 5), "spread": round(deviation, 5)}


def race(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """Returns the seconds until `rqvae` reaches the final held-out cosine of every vector-quantize-pytorch variant.

    The variant's own seconds are those until it first reached that cosine. `share` is the ratio of the two.
    """
    found: dict[str, Any] = {}
    for name in [name for name in runs if name.startswith("vq_pytorch")]:
        pairs = []
        for mine, theirs in zip(runs.get("rqvae", []), runs[name], strict=False):
            goal = theirs["cosine"]
            own = [
                next((s for s, value in variant["curve"] if value >= goal - 1e-9), variant["seconds"])
                for variant in (mine, theirs)
            ]
            pairs.append((*own, mine["cosine"] >= goal))
        if pairs:
            found[name] = {
                "rqvae": spread([pair[0] for pair in pairs]),
                "vq_pytorch": spread([pair[1] for pair in pairs]),
                "share": spread([pair[0] / pair[1] for pair in pairs]),
                "reached": all(pair[2] for pair in pairs),
            }
    return found or None


def preset(vectors: np.ndarray, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Measures the held-out cosine by depth with the codebooks of the TriAlignGR paper."""
    train, held_out = split(vectors, 0)
    variant = ours(train, held_out, 0, sizes=PRESET, method=RQVAE)
    codes = variant.peer.encode(held_out)
    with torch.no_grad():
        decoded = [variant.peer.decode(codes[:, :depth]) for depth in (1, 2, 3)]
    depths = [float(torch.cosine_similarity(held_out, rows).mean()) for rows in decoded]
    figures = quality(variant.peer, train, held_out, PRESET)
    return {
        "codebook_sizes": PRESET,
        "cosine_by_depth": depths,
        "cosine_of_3x256": runs["rqvae"][0]["cosine"],
        "seconds": variant.seconds,
        **figures,
    }


def large(rows: int, width: int = 256) -> dict[str, Any]:
    """Measures `rqkmeans` and `encode` on synthetic vectors in a separate process, for its peak memory."""
    with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_large, rows, width).result()


def _large(rows: int, width: int) -> dict[str, Any]:
    before = _peak_mib()
    began = time.perf_counter()
    vectors = collect(_synthetic(rows, width))
    read_seconds, began = time.perf_counter() - began, time.perf_counter()
    quantizer = fit_rqkmeans(vectors, Architecture(RQKMEANS, width, SIZES, width), seed=0)
    fit_seconds = time.perf_counter() - began
    shares, rates = [], []
    for block in vectors.values.split(rows // 20):  # alternating, because the machine's speed varies within seconds
        began = time.perf_counter()
        quantizer.encode(block)
        encode_seconds, began = time.perf_counter() - began, time.perf_counter()
        _products(quantizer, block)
        shares.append((time.perf_counter() - began) / encode_seconds)
        rates.append(len(block) / encode_seconds)
    return {
        "encode_rows_per_second": round(statistics.median(rates)),
        "encode_gemm_share": round(statistics.median(shares), 3),
        "encode_gemm_shares": [round(share, 3) for share in shares],
        "large": {
            "rows": rows,
            "width": width,
            "read_seconds": round(read_seconds, 1),
            "fit_seconds": round(fit_seconds, 1),
            "data_mib": rows * width * 4 // 2**20,
            "peak_mib_above_imports": round(_peak_mib() - before),
        },
    }


def _products(quantizer: Quantizer, values: torch.Tensor) -> None:
    """Computes only the matrix products of `encode`, in the same blocks."""
    for block in values.split(BLOCK_ROWS):
        for codebook in quantizer.codebooks:
            torch.mm(block, codebook.T)


def _synthetic(rows: int, width: int, batch: int = 8_192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields clustered vectors with a decaying spectrum in batches, like a reader."""
    random = np.random.default_rng(0)
    spectrum = (np.arange(1, width + 1) ** -0.4).astype(np.float32)
    centres = random.normal(size=(1_000, width)).astype(np.float32)
    for start in range(0, rows, batch):
        count = min(batch, rows - start)
        noise = random.normal(size=(count, width)).astype(np.float32)
        yield (centres[random.integers(1_000, size=count)] + noise) * spectrum, np.empty((count, 0), np.float32)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
