"""What grows with the log is never read whole: a walk over all calls of the layers that drive and serve a run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
GATHERS = {"take_all", "to_pandas", "materialize"}
READERS = {"read_table", "read_parquet"}
CATALOGUE_SIZED = {
    ("catalog", "items"),
    ("items",),
    ("embeddings",),
    ("sids",),
    ("features", "items"),
    ("metrics", "map"),
}

# Functions that read what may be of the log's size, or gather it, and what bounds them. The list should only shrink.
ALLOWED = {
    # of the log's size, to be worked on by partition
    "workflows.stages.ablate_features.scores.read_examples": "all examples, of a run made to compare features",
    "workflows.stages.evaluate.ranker._aucs": "test examples, at most `EXACT_ROWS`",
    # bounded
    "workflows.catalogs.synthetic.truth._read": "the embedded catalogue's own truth, as large as that is made",
    "workflows.catalogs.synthetic.truth.true_lists": "the same",
    "workflows.catalogs.synthetic.truth.true_attributes": "the same",
    "workflows.report.contents.rejects": "rejected and degraded items, a share of the catalogue",
    "workflows.stages.adapt_captioner.data.lessons": "texts of the pictures to learn from, at most `items`",
    "workflows.stages.adapt_captioner.loop.loop": "the same",
    "workflows.stages.ablate_features.scores.true_pairs": "the embedded catalogue's truth of items",
    "workflows.stages.evaluate.ranker._resamples": "counts of fixed size, one partition at a time",
    "workflows.stages.evaluate.ranker.score_part": "one partition of examples",
    "workflows.stages.evaluate.previous.earlier_probabilities": "one partition of users",
    "workflows.stages.generate.earlier.earlier_of": "ids of the catalogue",
    "workflows.stages.ingest.pieces.index_items": "ids of the catalogue",
    "workflows.stages.ingest.pieces.write_items": "a block of items",
    "workflows.stages.ingest.pieces.write_log_part": "users of one partition",
    "workflows.stages.rank.fit_retriever": "counts of items and a sample of queries, one partition at a time",
    "workflows.stages.quantize.fitting.train": "one vector for each item of the log",
    "workflows.stages.quantize.stage._read": "codes and ids of the catalogue, some 40 bytes an item",
}


def calls(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call below a node, with the function or method that it stands in."""
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call):
            yield name, child
        yield from calls(child, f"{name}.{child.name}" if inner else name)


def suspect(call: ast.Call) -> bool:
    """Whether a call gathers rows, or reads a table that is not known to be of the catalogue's size."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    parts = call.args[:1]
    if function == "read_table" and isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) != "files":
        parts = call.args  # of a run
    folder = tuple(part.value if isinstance(part, ast.Constant) else "?" for part in parts)
    lazy = function == "read_parquet" and "ray" in ast.unparse(call.func)
    return function in GATHERS or (function in READERS and folder not in CATALOGUE_SIZED and not lazy)


def found() -> set[str]:
    """The functions with such a call."""
    files = [file for layer in ("workflows", "serving") for file in sorted((ROOT / layer).rglob("*.py"))]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {
        where
        for file, name in names.items()
        for where, call in calls(ast.parse(file.read_text()), name)
        if suspect(call)
    }


def test_whole_tables_are_read_only_where_something_bounds_them() -> None:
    new = found() - ALLOWED.keys()
    assert not new, f"read by partition, stream, or say here what bounds it: {sorted(new)}"
    gone = ALLOWED.keys() - found()
    assert not gone, f"no longer there, so take it off the list: {sorted(gone)}"


def test_the_walk_sees_what_it_is_for() -> None:
    def judged(line: str) -> bool:
        return any(suspect(call) for _, call in calls(ast.parse(line), ""))

    for line in (
        'run.read_table("features", "users")',
        'run.read_table("features", name)',
        'context.run.read_table("log", "events")',
        "files.read_table(uri)",
        "pl.read_parquet(path)",
        "rows.take_all()",
    ):
        assert judged(line)
    for line in ('run.read_table("features", "items")', 'run.read_table("embeddings", columns=names)'):
        assert not judged(line)
