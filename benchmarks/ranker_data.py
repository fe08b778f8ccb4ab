"""Generates a click log with known truth: 26 categorical columns, 13 dense ones and two bags of tokens.

Ids are long-tailed (log-uniform, that is Zipf with exponent 1) and scattered over 1…V-1 of a vocabulary of V rows; 0 is
reserved for unknown values. The logit of a label is a sum of effects of every id, token and dense value, of five
products of two fields' factors and of one product of two dense values.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.evaluation.clicks import auc

VOCABULARIES = {f"c{i}": int(rows) for i, rows in enumerate(np.geomspace(100, 1_000_000, 26).round())}
BAGS = {"b0": 20_000, "b1": 50_000}
DENSE = tuple(f"d{i}" for i in range(13))
TOKENS = (6, 18)  # shortest and longest bag; their mean is 12
TEST_SHARE = 0.1

PAIRS = (("c0", "c12"), ("c3", "c8"), ("c5", "c16"), ("c7", "c1"), ("c10", "c14"))
FACTORS = 4
VARIANCES = {"ids": 0.45, "bags": 0.15, "pairs": 0.2, "dense": 0.2}  # shares of the logit's variance
LOGIT_STD, LOGIT_MEAN = 1.45, -1.0  # give 30 % clicks, and the truth an AUC of about 0.8


def prepare(folder: Path, rows: int, *, seed: int = 0) -> dict[str, object]:
    """Writes FOLDER/rows.parquet unless it exists; returns its description, with the truth's AUC on the test rows."""
    wanted = {
        "rows": rows,
        "seed": seed,
        "vocabularies": VOCABULARIES,
        "bags": BAGS,
        "tokens": list(TOKENS),
        "dense": len(DENSE),
        "variances": VARIANCES,
        "logit": [LOGIT_MEAN, LOGIT_STD],
    }
    note = folder / "config.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    table, logit = generate(rows, seed)
    pq.write_table(table, folder / "rows.parquet", compression="zstd")
    first = split(rows)
    label = table["label"].to_numpy()
    found = wanted | {
        "test_rows": rows - first,
        "click_rate": round(float(label.mean()), 4),
        "auc_of_truth": round(auc(label[first:], logit[first:]), 4),
    }
    note.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def read(folder: Path, rows: int | None = None) -> tuple[pa.Table, pa.Table]:
    """Reads the training and the test rows; `rows` limits the former."""
    table = pq.read_table(folder / "rows.parquet").combine_chunks()
    first = split(len(table))
    return table.slice(0, first if rows is None else min(rows, first)), table.slice(first)


def split(rows: int) -> int:
    """Returns the position of the first test row."""
    return rows - int(rows * TEST_SHARE)


def generate(rows: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Draws the log, and returns it with the true logit of every row, float64 [rows]."""
    random = np.random.default_rng(seed)
    columns: dict[str, pa.Array] = {}
    ids = {name: _ids(random, vocabulary, rows) for name, vocabulary in VOCABULARIES.items()}
    parts = {"ids": np.zeros(rows), "bags": np.zeros(rows), "pairs": np.zeros(rows), "dense": np.zeros(rows)}
    for name, values in ids.items():
        columns[name] = pa.array(values)
        parts["ids"] += random.normal(size=VOCABULARIES[name])[values]
    for one, other in PAIRS:
        factors = (random.normal(size=(VOCABULARIES[name], FACTORS))[ids[name]] for name in (one, other))
        parts["pairs"] += np.einsum("nk,nk->n", *factors)
    for name, vocabulary in BAGS.items():
        lengths = random.integers(TOKENS[0], TOKENS[1] + 1, rows)
        offsets = np.r_[0, lengths.cumsum()].astype(np.int32)
        tokens = _ids(random, vocabulary, int(offsets[-1]))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens))
        parts["bags"] += np.add.reduceat(random.normal(size=vocabulary)[tokens], offsets[:-1]) / np.sqrt(lengths)
    dense = random.normal(size=(rows, len(DENSE))).astype(np.float32)
    columns |= {name: pa.array(dense[:, i]) for i, name in enumerate(DENSE)}
    parts["dense"] = dense @ random.normal(size=len(DENSE)) + 2.0 * dense[:, 0] * dense[:, 1]
    logit = sum((part - part.mean()) / part.std() * VARIANCES[name] ** 0.5 for name, part in parts.items())
    logit = LOGIT_MEAN + LOGIT_STD * np.asarray(logit)
    columns["label"] = pa.array((random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32))
    return pa.table(columns), logit


def _ids(random: np.random.Generator, vocabulary: int, count: int) -> np.ndarray:
    """Draws long-tailed ids in 1…vocabulary-1, int32 [count]."""
    ranks = (vocabulary ** random.random(count)).astype(np.int64).clip(1, vocabulary - 1) - 1
    return (random.permutation(vocabulary - 1).astype(np.int32) + 1)[ranks]
