"""The stage adapt_captioner: a captioner learns from a catalogue's own pictures, titles and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.qformer.model import load_captioner
from models.qformer.weights import weights_digest
from operators.look import Look
from operators.media.fetch import FetchMedia
from storage import files
from storage.errors import UserError
from workflows.catalogs.survey import Survey
from workflows.distributed import streams
from workflows.distributed.pools import Group, Node, Step, Workers, plan
from workflows.engine.stage import Context, Result, Stage
from workflows.stages.adapt_captioner.data import choose, lessons, map_features
from workflows.stages.adapt_captioner.scores import judge
from workflows.stages.adapt_captioner.settings import SCRATCH, Config


class AdaptCaptionerStage(Stage[Config]):
    """Fine-tunes the captioner, or trains one from scratch, on the items that have a picture and a text."""

    config_type = Config
    version = 2
    reads = ("ingest",)
    operators = (FetchMedia, Look)

    def check(self, config: Config, root: str) -> None:
        """Finds out whether there are weights to begin with.

        Raises:
            UserError: there are none.
        """
        if config.base != SCRATCH:
            weights_digest(config.base)
        decoder = config.architecture.decoder
        if decoder.name == "pretrained" and decoder.model.startswith("/") and not Path(decoder.model).is_dir():
            raise UserError(f"There is no model at {decoder.model}: give a folder, or a name on the Hugging Face hub.")

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds a catalogue without texts or without media.

        Raises:
            UserError: it is one.
        """
        if not catalog.filled["title"] and not catalog.filled["attributes"]:
            raise UserError(
                f"No item of {catalog.uri} has a title or attributes to learn captions from: adapt the captioner to a "
                "catalogue that has them, and use it here by stages.interpret.caption."
            )
        if not catalog.filled["media"]:
            raise UserError(f"No item of {catalog.uri} has a medium: there is nothing to describe.")
        return []

    def workers(self, config: Config) -> Workers | None:
        """Returns the processes of the fit."""
        return config.processes

    def groups(self, config: Config, root: str, nodes: Sequence[Node], *, rows: int) -> list[Group]:
        """Returns the operators that look at pictures in their pools."""
        return plan(_steps(config, root), nodes, blocks=-(-rows // config.commit_rows))

    def run(self, config: Config, context: Context) -> Result:
        """Writes `models/captioner` and metrics/adapt_captioner.json."""
        from workflows.distributed import training  # both import Ray, which other commands do without
        from workflows.stages.adapt_captioner.loop import ARTIFACT, loop

        run, folder = context.run, context.run.uri("checkpoints", "adapt_captioner")
        sink = files.join(folder, context.fingerprint)
        source = files.join(sink, "source")
        total = choose(run, config.items, source)
        if streams.committed_rows(sink) < total:
            streams.stream(
                source,
                self.groups(config, context.catalog, context.nodes, rows=total),
                sink=sink,
                columns=["item_id", "media_digest", "look"],
                commit_rows=config.commit_rows,
                no_progress_timeout_s=config.no_progress_timeout_s,
                on_rows=lambda done: context.progress(done, total),
            )
        rejected, degraded, codes = streams.write_rejects(sink, run, "adapt_captioner", total)
        if rejected + degraded > config.max_degraded_share * total:
            files.remove(sink)  # what failed is tried again
            reasons = ", ".join(f"{count} {code}" for code, count in codes.items())
            raise UserError(
                f"{rejected + degraded:,} of {total:,} pictures did not decode ({reasons}): mend the media, or set "
                "stages.adapt_captioner.fetch; rejects/adapt_captioner names them."
            )
        mapped = map_features(run, sink, config.views)
        found = lessons(source, mapped, config)
        context.log(
            f"adapt_captioner: {found.told.num_rows:,} of {found.pictures:,} different pictures have words that they "
            f"tell, {len(found.words)} in all, such as {', '.join(list(found.words)[:8])}"
        )
        files.write_table(files.join(sink, "lessons"), found.told)
        curve = training.fit(
            loop,
            {
                "root": run.root,
                "seed": context.seed,
                "settings": config.model_dump(mode="json"),
                "sink": sink,
                "lessons": files.join(sink, "lessons"),
            },
            workers=config.processes,
            run=run,
            name=f"adapt_captioner/{context.fingerprint}/fit",
            progress=lambda metrics: context.progress(int(metrics["step"]), int(metrics["steps"])),
        )
        scores = judge(load_captioner(run.uri(*ARTIFACT)), found, mapped, config.views)
        for warning in scores["warnings"]:
            context.log(f"adapt_captioner: {warning}")
        metrics: dict[str, Any] = {
            "pictures": found.pictures,
            "told": found.told.num_rows,
            "issues": codes,
            "words": {word: round(area, 3) for word, area in found.words.items()},
            "curve": [point for point in curve if "held_out" in point],
            **scores,
        }
        run.write_json(metrics, "metrics", "adapt_captioner.json")
        return Result(total, total - rejected, rejected, degraded, metrics)


def _steps(config: Config, root: str) -> list[Step]:
    """Returns the operators: one picture of each item is looked at."""
    return [
        Step("fetch", config.fetch.operator(root, ()), config.fetch.pool),
        Step("look", Look(config.views), None, "gpu"),
    ]
