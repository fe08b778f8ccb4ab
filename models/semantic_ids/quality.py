"""What to know of a set of semantic IDs before anything is trained on them, and of new items under an old quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from models.semantic_ids.neighbours import neighbour_overlap
from models.semantic_ids.prefixes import number_prefixes
from models.semantic_ids.quantizer import Quantizer
from storage import tables

OVERLAP_ROWS = 2_000  # items whose neighbours are looked for, and attributes read
SHUFFLES = 10  # of the categories, for the control of their purity
BLOCK_ROWS = 16_384  # rows decoded at a time
HELD_OUT = 10  # one item of so many is taken for a new one
FOLDS = 4  # of the items that attributes are read from
RIDGE = 0.1  # of the regression that reads them


def scorecard(
    quantizer: Quantizer,
    embeddings: torch.Tensor,
    codes: np.ndarray,
    suffixes: np.ndarray,
    *,
    attributes: pa.Array | pa.ChunkedArray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the quality of a catalogue's semantic IDs, ready for JSON.

    Args:
        embeddings: float [N, D], N ≥ 1.
        codes: integers [N, L], without the deduplication suffix.
        suffixes: integers [N], -1 for none.
        attributes: map<string, string> [N], what `category_purity` goes by.
        seed: of the items drawn for `neighbour_overlap`, at most 2,000, and of the shuffles.

    Returns:
        What `usage` and `reconstruction` give; `collision_share` and `largest_collision` of the codes alone,
        `collision_share_after` with their suffixes; `neighbour_overlap` between the standardised embeddings and the
        codes, {prefix, decoded}; `known_prefixes`; `category_purity` and `decodability`, of which the last goes by the
        items drawn, empty without attributes that serve as categories.
    """
    tensor = torch.from_numpy(codes)
    before, after = collisions(codes), collisions(np.column_stack([codes, suffixes]))
    drawn = np.sort(np.random.default_rng(seed).choice(len(codes), min(OVERLAP_ROWS, len(codes)), replace=False))
    decoded: dict[str, Any] = {}
    if attributes is not None:
        vectors = quantizer.standardise(embeddings[drawn])
        decoded = decodability(vectors, codes[drawn], attributes.take(pa.array(drawn)), seed=seed)
    overlap = neighbour_overlap(
        quantizer.standardise(embeddings),
        tensor,
        lambda found: quantizer.standardise(quantizer.decode(found)),
        torch.from_numpy(drawn),
    )
    return {
        **usage(codes, quantizer.architecture.codebook_sizes),
        "collision_share": before["share"],
        "collision_share_after": after["share"],
        "largest_collision": before["largest"],
        **reconstruction(quantizer, embeddings, tensor),
        "neighbour_overlap": overlap,
        "known_prefixes": known_prefixes(codes, seed=seed),
        "category_purity": {} if attributes is None else category_purity(codes, attributes, seed=seed),
        "decodability": decoded,
    }


def usage(codes: np.ndarray, sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """Tells how much of each codebook is used.

    Args:
        codes: integers [N, L], without the deduplication suffix.
        sizes: codewords per level.

    Returns:
        Per level: `usage`, the share of codewords that items have; `dead_codes`, how many none has; `perplexity`,
        exp of the entropy of the codes, at most the codebook's size. Per depth h: `prefix_entropy`, the entropy in
        bits of the first h codes, at most log2 N.
    """
    counts = code_counts(codes, sizes)
    prefixes = [np.bincount(group) for group in _groups(codes)]
    return {
        "usage": [float((level > 0).mean()) for level in counts],
        "dead_codes": [int((level == 0).sum()) for level in counts],
        "perplexity": [float(2 ** entropy(level)) for level in counts],
        "prefix_entropy": [entropy(level) for level in prefixes],
    }


def collisions(codes: np.ndarray) -> dict[str, float]:
    """Items that share their whole code with another.

    Args:
        codes: integers [N, L], with or without the deduplication suffix.

    Returns:
        `share` of such items and the size of the `largest` group (1 where every item is alone).
    """
    sizes = np.bincount(_groups(codes)[-1])
    return {"share": float(sizes[sizes > 1].sum() / len(codes)), "largest": int(sizes.max())}


def reconstruction(quantizer: Quantizer, embeddings: torch.Tensor, codes: torch.Tensor) -> dict[str, list[float]]:
    """Returns what the first h levels keep of the embeddings, for h = 1 … L, both sides standardised.

    Args:
        embeddings: float [N, D].
        codes: their codes, integers [N, L].

    Returns:
        Per depth: `reconstruction_cosine`, the mean of cos(x, x̂), and `reconstruction_mse`, mean over rows and
        dimensions, which is the share of variance that is lost.
    """
    kept = [reconstruction_errors(quantizer, embeddings, codes[:, :depth]) for depth in range(1, codes.shape[1] + 1)]
    return {
        "reconstruction_cosine": [float(cosine.mean()) for cosine, _ in kept],
        "reconstruction_mse": [float(error.mean()) for _, error in kept],
    }


def known_prefixes(codes: np.ndarray, *, seed: int = 0) -> list[float]:
    """Returns for h = 1 … L the share of held-out items whose first h codes an item has that is not held out.

    A model that has learned of prefixes knows nothing else of new items.

    Args:
        codes: integers [N, L], without the deduplication suffix.
        seed: of the items held out, a tenth of all.
    """
    held = np.random.default_rng(seed).permutation(len(codes)) % HELD_OUT == 0
    return [float(np.isin(group[held], group[~held]).mean()) for group in _groups(codes)]


def decodability(
    embeddings: torch.Tensor, codes: np.ndarray, attributes: pa.Array | pa.ChunkedArray, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Tells how often a ridge regression names the categories of items that it has not seen.

    Args:
        embeddings: float [N, D], standardised.
        codes: integers [N, L]; the regression sees which codes an item has, each by itself.
        attributes: see `category_purity`.
        seed: of the folds.

    Returns:
        For every category the shares of the items with a value whose value it names: `codes`, from the first h codes
        for h = 1 … L; `embedding`, from the embeddings; `commonest`, from nothing.
    """
    folds, found = np.random.default_rng(seed).permutation(len(codes)) % FOLDS, {}
    similar = torch.from_numpy(np.array([level[:, None] == level for level in codes.T])).cumsum(0, dtype=torch.int8)
    for key, labels in _categories(attributes).items():
        some = np.flatnonzero(labels >= 0)
        vectors, wanted, fold = embeddings[some].double(), torch.from_numpy(labels[some]), folds[some]
        kernels = [*(level[some][:, some].double() for level in similar), vectors @ vectors.T]
        *by_code, by_vector, nothing = (_named(each, wanted, fold) for each in [*kernels, 0 * kernels[0]])
        found[key] = {"codes": by_code, "embedding": by_vector, "commonest": nothing}
    return found


def _named(kernel: torch.Tensor, labels: torch.Tensor, folds: np.ndarray) -> float:
    """Returns the share of labels that kernel ridge regression on the other folds names."""
    targets, named = torch.nn.functional.one_hot(labels).double(), torch.zeros(len(labels))
    ridge = (RIDGE * float(kernel.diagonal().mean()) or 1.0) * torch.eye(len(labels), dtype=torch.float64)
    for fold in range(FOLDS):
        one, rest = (torch.from_numpy(np.flatnonzero(mask)) for mask in (folds == fold, folds != fold))
        mean = targets[rest].mean(0)
        weights = torch.linalg.solve((kernel + ridge)[rest][:, rest], targets[rest] - mean)
        named[one] = ((kernel[one][:, rest] @ weights + mean).argmax(1) == labels[one]).float()
    return float(named.mean())


def category_purity(
    codes: np.ndarray, attributes: pa.Array | pa.ChunkedArray, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Tells how far items of equal first codes are of one category (Manning et al. 2008, section 16.3).

    A group of one is pure whatever the codes are, and small groups nearly so. Therefore groups of one are left out,
    and `shuffled` says what the same groups would show if their categories were those of random items.

    Args:
        codes: integers [N, L], without the deduplication suffix.
        attributes: map<string, string> [N]; a key is a category if half the items or more have it, with between 2
            and N / 5 distinct values.
        seed: of the shuffles.

    Returns:
        For every such key: `values`, how many; `known`, the share of items that have one; and per depth h, over items
        that share their first h codes with another: `covered`, how many they are of those with a value; `purity`, the
        share that has the most frequent value of its group (NaN where there is no such item); `shuffled`, the mean of
        the same over ten shuffles of the values.
    """
    random, depths, found = np.random.default_rng(seed), _groups(codes), {}
    for key, labels in _categories(attributes).items():
        known = labels >= 0
        orders = [labels[known], *(random.permutation(labels[known]) for _ in range(SHUFFLES))]
        card: dict[str, Any] = {"values": int(labels.max()) + 1, "known": float(known.mean())}
        card |= {"covered": [], "purity": [], "shuffled": []}
        for depth in depths:
            group = depth[known]
            shared = np.bincount(group)[group] > 1
            purity = [_purity(group[shared], order[shared]) for order in orders]
            card["covered"].append(float(shared.mean()))
            card["purity"].append(purity[0])
            card["shuffled"].append(float(np.mean(purity[1:])))
        found[key] = card
    return found


def _categories(attributes: pa.Array | pa.ChunkedArray) -> dict[str, np.ndarray]:
    """Returns the keys that serve as categories, each with the number of every item's value, int64 [N], -1 for none."""
    rows = len(attributes)
    entries = tables.entries(attributes).drop_nulls().unique(["row", "key"], keep="first", maintain_order=True)
    found = {}
    for (key,), part in sorted(entries.group_by("key", maintain_order=True), key=lambda pair: pair[0]):
        values = part["value"].n_unique()
        if 2 * part.height >= rows and 2 <= values <= rows / 5:
            labels = np.full(rows, -1)
            labels[part["row"].to_numpy()] = part["value"].rank("dense").to_numpy().astype(np.int64) - 1
            found[str(key)] = labels
    return found


def _purity(group: np.ndarray, labels: np.ndarray) -> float:
    if not len(group):
        return float("nan")
    span = labels.max() + 1
    pairs, counts = np.unique(group * span + labels, return_counts=True)
    starts = np.flatnonzero(np.diff(pairs // span, prepend=-1))
    return float(np.maximum.reduceat(counts, starts).sum() / len(group))


def reconstruction_errors(
    quantizer: Quantizer, embeddings: torch.Tensor, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and mean squared error of every row's reconstruction, standardised, each float64 [N]."""
    cosines, errors = [], []
    for block, code in zip(embeddings.split(BLOCK_ROWS), codes.split(BLOCK_ROWS), strict=True):
        inputs, outputs = quantizer.standardise(block), quantizer.standardise(quantizer.decode(code))
        cosines.append(torch.cosine_similarity(inputs, outputs).double())
        errors.append((inputs - outputs).square().mean(1).double())
    return torch.cat(cosines), torch.cat(errors)


def _groups(codes: np.ndarray) -> np.ndarray:
    return torch.stack(number_prefixes(torch.from_numpy(codes))[1:]).numpy()


def code_counts(codes: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Counts the items of every code, int64 [size] per level."""
    return [np.bincount(level, minlength=size) for level, size in zip(codes.T, sizes, strict=True)]


def entropy(counts: np.ndarray) -> float:
    """In bits."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
