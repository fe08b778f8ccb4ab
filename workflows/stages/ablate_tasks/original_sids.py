"""Original semantic IDs: the run's own way to them once more, without pictures and without what was read off them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from operators.base import KEPT
from operators.cached import CachedOperator
from operators.embed import EmbedTexts
from storage import files
from storage.run import RunDir
from storage.sorting import write_in_hash_order
from workflows.distributed import streams
from workflows.distributed.pools import Step
from workflows.engine.definition import finished_definition
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import project
from workflows.stages.interpret import stage as interpret
from workflows.stages.quantize.fitting import fit
from workflows.stages.quantize.settings import Config as QuantizeConfig
from workflows.stages.quantize.stage import encode, write_sids

TEXTS = ("title", "description")
COMPLETE = "complete.json"  # written last: a folder of Parquet parts may be there in part


def write_original(context: Context, to: RunDir) -> bool:
    """Writes `items` and `sids` of a run's items, by their titles and descriptions alone.

    The run's text model reads them; the projection and the quantizer are fitted on these vectors with the run's own
    settings, so that nothing differs but what is known of the items. What a killed attempt has finished is kept.

    Args:
        context: of a run that has come to quantize.
        to: what is written, with a projector and a quantizer beside it.

    Returns:
        False where no item has a title or a description.
    """
    texts = context.run.read_table("items", columns=["item_id", *TEXTS])
    if all(texts[name].null_count == texts.num_rows for name in TEXTS):
        return False
    if files.exists(to.uri(COMPLETE)):
        return True
    configs = finished_definition(context.run).configs
    read, projected, quantized = (configs[name] for name in ("interpret", "project", "quantize"))
    assert isinstance(read, interpret.Config)  # noqa: S101 - for the type checker, as the next two
    assert isinstance(projected, project.Config)  # noqa: S101
    assert isinstance(quantized, QuantizeConfig)  # noqa: S101
    there = replace(context, run=to, progress=lambda done, total: None)
    _embed(read, there, texts, context.run)
    text_alone = {"previous": None, "weights": project.Weights(image=0, text=1)}
    stage("project").run(projected.model_copy(update=text_alone), there)
    sizes = tuple(context.run.read_json("models", "quantizer", "config.json")["codebook_sizes"])
    quantized = quantized.model_copy(update={"previous": None, "codebook_sizes": sizes})
    if quantized.reads_split():
        files.copy(context.run.uri("log"), to.uri("log"))
    fit(quantized, there)
    write_sids(quantized, to, encode(there))
    to.write_json({"items": texts.num_rows}, COMPLETE)
    return True


def _embed(config: interpret.Config, context: Context, texts: pa.Table, run: RunDir) -> None:
    """Writes `items`: texts, no captions, vectors of the texts and none of pictures; `run` is whose items they are."""
    nothing = run.read_table("items", columns=["caption", "interests", "image_vector"]).schema
    for field in nothing:
        texts = texts.append_column(field, pa.nulls(texts.num_rows, field.type))
    folder = context.run.uri("checkpoints", "texts")
    files.write_table(files.join(folder, "source"), texts.drop_columns("image_vector"))
    operator = config.text_embedding.operator()
    assert isinstance(operator, EmbedTexts)  # noqa: S101 - for the type checker
    cache = interpret.cache_uri(config, run.root)
    embed = CachedOperator(replace(operator, joint=False), "text_embedding", cache)
    step = Step("text_embedding", embed, config.text_embedding.pool, config.text_embedding.place)
    schema = pa.unify_schemas([texts.schema, operator.output_schema])
    read = [name for name in schema.names if name != "image_vector"]
    interpret.stream_rest(config, context, [step], folder, read, texts.num_rows)

    def batches() -> Iterator[pa.RecordBatch]:
        kind = schema.field("image_vector").type
        for batch in streams.outcome_batches(folder, KEPT, read):
            yield batch.append_column("image_vector", pa.nulls(batch.num_rows, kind))

    write_in_hash_order(batches(), context.run.uri("items"), texts.num_rows, schema)
