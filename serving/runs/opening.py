"""A run is loaded, and looked at as a whole, before anybody gets an answer from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import torch

from models.common.recommender import Recommender
from operators.assign_sids import AssignSids
from operators.columns import matrix_column, matrix_of, read_block
from operators.project import BLOCKS, Project
from serving.api import warm
from serving.api.errors import passes
from serving.pipeline import Pipeline
from serving.settings import check_servable
from serving.stores.base import ServedStore
from storage import files
from storage.errors import ArtifactError, StoreError, UserError
from storage.run import RunDir

TRIES = 5  # of the first queries
LOOKED_AT = 256  # items whose embeddings and semantic IDs are made again
ALIKE = 0.75  # share of them that has to come out as it is; some keep what they had before their content changed


def open_run(
    root: str,
    store: ServedStore,
    *,
    candidates: int = 200,
    fitted: Mapping[str, Recommender] | None = None,
    rules: str | None = None,
) -> Pipeline:
    """Loads a run; see `serving.pipeline.Pipeline`.

    Raises:
        UserError: it is not finished, or damaged in whatever way, or its parts are of different runs.
    """
    check_servable(root)
    with _worded(root):
        pipeline = Pipeline(RunDir(root), store, candidates=candidates, fitted=fitted, rules=rules)
        _check_models(RunDir(root), pipeline)
    return pipeline


def check_answers(root: str, pipeline: Pipeline) -> None:
    """Asks a run that is loaded its first queries, as a replica does before it is ready.

    A query that a full language model, or one that is still loaded, does not take for a while says nothing of the run.

    Raises:
        UserError: one of them went wrong, other than that such a run has no answer to it.
    """
    for _ in range(TRIES):
        failed = warm.warm_up(pipeline)
        if not any(map(passes, failed.values())):
            break
        time.sleep(warm.PAUSE_S)
    for error in failed.values():
        if isinstance(error, ArtifactError | StoreError):
            raise error
    if wrong := [kind for kind, error in failed.items() if not (isinstance(error, UserError) or passes(error))]:
        raise UserError(
            f"The run at {root} is loaded, but cannot answer ({', '.join(wrong)}): its parts do not fit each other, "
            "so make them anew with `tesserec run`."
        )


def _check_models(run: RunDir, pipeline: Pipeline) -> None:
    """Makes sure that a run's models make the embeddings and the semantic IDs that its items have.

    Raises:
        UserError: they make others.
    """
    some = pipeline.catalogue.ids.slice(0, LOOKED_AT)  # in the order of hashes, so any
    embeddings = matrix_of(read_block(run, some, 0, "embeddings", columns=["embedding"])["embedding"])
    raw = set(files.dataset(run.uri("items")).schema.names)
    if raw.issuperset(BLOCKS) and files.exists(run.uri("models", "projector")):
        made = Project(run.uri("models", "projector"))(read_block(run, some, 0, "items", columns=list(BLOCKS)))
        again = matrix_of(made["embedding"])
        fits = again.shape == embeddings.shape
        if not fits or np.isclose(again, embeddings, atol=1e-3, rtol=1e-3).all(1).mean() < ALIKE:
            raise UserError(
                f"The projection of the run at {run.root} is another one than made its embeddings: run it again with "
                "--from project."
            )
    if files.exists(run.uri("models", "quantizer")):
        codes = matrix_of(read_block(run, some, 0, "sids", columns=["codes"])["codes"])[:, :-1]
        table = AssignSids(run.uri("models", "quantizer"))(pa.table({"embedding": matrix_column(embeddings)}))
        again = matrix_of(table["codes"])
        level = slice(0, max(1, codes.shape[1] - 1))  # collisions move codes of the last one
        fits = again.shape == codes.shape
        if not fits or (again[:, level] == codes[:, level]).all(1).mean() < ALIKE:
            raise UserError(
                f"The semantic IDs of the run at {run.root} are of another tokenizer than its quantizer: run it again "
                "with --from quantize."
            )


@contextmanager
def _worded(root: str) -> Iterator[None]:
    """Words, for the length of a block, whatever a damaged run makes its readers raise."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise UserError(
            f"The run at {root} cannot be loaded ({reason}): a part of it is missing or damaged, so make it anew with "
            "`tesserec run`."
        ) from error
