"""Positions in the plane for a catalogue's embeddings: the map on which semantic IDs are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from storage.hashing import hash_order

MAP_ITEMS = 2_000  # t-SNE of so many takes about ten seconds of one core, and a page shows no more of them
COMPONENTS = 50  # kept by PCA before t-SNE: van der Maaten and Hinton 2008, section 4.1
PERPLEXITY = 30.0
STEPS = 500  # half of scikit-learn's default: as many neighbours stay neighbours after it


def layout(vectors: np.ndarray, *, seed: int) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008) after PCA, from the first two principal components.

    Equal vectors stand in one place, and the order of the rows does not matter. With fewer than five places there are
    no neighbourhoods to keep: the principal components are the positions then.

    Args:
        vectors: finite float [N, D].
        seed: of t-SNE.

    Returns:
        Positions float32 [N, 2]; distances mean something between near neighbours only, directions nothing.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    places, place = np.unique(vectors, axis=0, return_inverse=True)
    count, width = places.shape
    if count < 2:
        return np.zeros((len(vectors), 2), np.float32)
    pca = PCA(min(count, width, COMPONENTS), svd_solver="full")  # the solver without draws
    axes = pca.fit_transform(np.asarray(places, np.float64))
    axes /= axes[:, 0].std()  # t-SNE does not depend on the scale, its numbers do
    positions = np.pad(axes, ((0, 0), (0, 1)))[:, :2]  # vectors may have one dimension alone
    if count >= 5:
        model = TSNE(
            perplexity=min(PERPLEXITY, (count - 1) / 3),  # t-SNE looks at three neighbours for each unit of it
            init=positions * 1e-4,
            max_iter=STEPS,
            random_state=seed,
        )
        with threadpool_limits(1):  # several threads add up in any order
            positions = model.fit_transform(axes)
    return positions[place].astype(np.float32)


def map_table(
    item_ids: Sequence[str], vectors: np.ndarray, codes: np.ndarray, naive: np.ndarray | None, *, seed: int
) -> pa.Table:
    """Returns the map of a catalogue, or of MAP_ITEMS of its items that the hash of the ids chooses.

    Args:
        item_ids: N distinct ids.
        vectors: finite float [N, D], by which items stand near each other.
        codes: integers [N, L], of which the first level is shown, with or without the deduplication suffix.
        naive: the same of IDs to compare with; None where there are none.
        seed: of the layout.

    Returns:
        `item_id` string, `x` and `y` float32, `code` and `naive_code` int32, which is null without `naive`; in the
        order of the ids' hash, so that the first rows are a sample, too.
    """
    chosen = hash_order(item_ids)[:MAP_ITEMS]
    positions = layout(vectors[chosen], seed=seed)
    return pa.table(
        {
            "item_id": pa.array([item_ids[row] for row in chosen], pa.string()),
            "x": positions[:, 0],
            "y": positions[:, 1],
            "code": pa.array(codes[chosen, 0], pa.int32()),
            "naive_code": pa.array([None] * len(chosen) if naive is None else naive[chosen, 0], pa.int32()),
        }
    )
