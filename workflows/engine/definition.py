"""Workflow definitions: YAML, `--set` overrides, and errors that name the correction."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model

from models.common.mistakes import explain
from models.common.settings import Folder, key_lines, parse_yaml, place_of, read_text
from operators.log.split import Split, SplitTime
from storage import files
from storage.errors import UserError
from storage.manifest import require_finished, require_manifest
from storage.run import RunDir
from workflows.engine.registry import ORDER, stage
from workflows.engine.stage import ContinuingConfig, StageConfig

# Keys and values of earlier versions, and what to write in their place; empty for what is gone.
RENAMED = {
    "stages.evidence": "stages.ablate_features",
    "stages.ablation": "stages.ablate_tasks",
    "stages.ablate_features.arms": "variants",
    "stages.ablate_tasks.sequential": "language_model",
    "stages.ablate_tasks.language_model.course": "fit",
    "stages.generate.parallel": "product_codes",
    "stages.generate.sequential": "language_model",
    "stages.generate.product_codes.digits": "codes",
    "stages.generate.product_codes.course": "fit",
    "stages.generate.product_codes.model.objective": "",  # codes is the loss of stages.generate.rpg
    "stages.generate.language_model.course": "fit",
    "stages.generate.sasrec.course": "fit",
    "stages.generate.language_model.schedule: staged": "content_first",
    "stages.ablate_tasks.language_model.schedule: staged": "content_first",
    "stages.ablate_tasks.budget": "",  # the main task has as many documents in every variant
    "stages.quantize.max_digits": "max_suffixes",
    "stages.project.frozen": "previous",
    "stages.quantize.frozen": "previous",
    "stages.quantize.gradient": "",  # rotation did not help
    "stages.quantize.collisions: digit": "suffix",
    "stages.quantize.collisions: always_digit": "always_suffix",
}


ADAPT_CAPTIONER = Path(__file__).parents[1] / "definitions" / "adapt_captioner.yaml"
GIVES_SIDS = ("ingest", "interpret", "project", "quantize")  # stages after which a run gives semantic IDs


class Definition(BaseModel):
    """A workflow: its catalogue, its stages and their settings.

    Attributes:
        name: name of the workflow; the run directory defaults to `runs/<name>`.
        seed: seed of all random draws in the run.
        catalog: URI of the catalogue.
        previous: URI of a finished run that this one updates: stages take over from it what does not change.
        split: split of the log, the same for every stage that trains or evaluates on it.
        stages: settings by stage name; a stage that is not named does not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)
    catalog: str = Field(min_length=1)
    previous: Folder | None = None
    split: Split = SplitTime()
    stages: Any
    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    def where(self, key: str) -> str:
        """Returns the `FILE:LINE` or the `--set` of a key, or of its nearest parent that was written."""
        return place_of(self._places, key) or self.name

    @property
    def configs(self) -> dict[str, StageConfig]:
        """Returns the settings of the stages that run, in the order in which they run."""
        named = {name: getattr(self.stages, name) for name in ORDER}
        return {name: self._continuing(config) for name, config in named.items() if config is not None}

    def _continuing(self, config: StageConfig) -> StageConfig:
        """Returns the settings of a stage with the run that it builds on."""
        if isinstance(config, ContinuingConfig) and config.previous is None:
            return config.model_copy(update={"previous": self.previous})
        return config

    def absolute(self) -> Definition:
        """Returns the definition as processes in other folders may read it."""
        return self.model_copy(update={"catalog": files.absolute(self.catalog)})


def load(path: str, overrides: list[str]) -> Definition:
    """Reads a definition and applies `a.b=c` overrides, whose values are YAML.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type, or a stage that
            another one reads from is missing.
    """
    text = read_text(path, "workflow definition")
    definition = resolve(overridden(parse_yaml(text, path), overrides), source=path)
    definition._places.update(key_lines(text, path))
    keys = (override.partition("=")[0] for override in overrides)
    definition._places.update({key: f"--set {key}" for key in keys})
    return definition


def resolve(raw: Any, source: str) -> Definition:
    """Validates a parsed definition; `source` names it in errors."""
    if not isinstance(raw, dict):
        raise UserError(f"{source} must be a YAML mapping with the keys name, seed, catalog, split and stages.")
    if isinstance(raw.get("stages"), dict):  # `ingest:` without settings means its defaults
        raw = {**raw, "stages": {name: {} if value is None else value for name, value in raw["stages"].items()}}
    model = _model()
    try:
        definition: Definition = model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, model, RENAMED)}") from error
    present = definition.configs
    if not present:
        raise UserError(f"{source}: stages is empty: name at least ingest.")
    for name in present:
        for needed in stage(name).reads:
            if needed not in present:
                raise UserError(f"{source}: stage {name} reads what {needed} writes: add {needed} to stages.")
        one_of = stage(name).reads_one_of
        if one_of and not any(needed in present for needed in one_of):
            wanted = " or ".join(one_of)
            raise UserError(f"{source}: stage {name} reads what {wanted} writes: add one of them to stages.")
    return definition


def finished_definition(run: RunDir) -> Definition:
    """Returns the definition of a run that has finished quantize.

    Raises:
        UserError: there is no run, or it has not finished quantize.
    """
    require_finished(run.root, GIVES_SIDS, "gives no SIDs")
    return definition_of(run)


def definition_of(run: RunDir) -> Definition:
    """Returns the definition of a run.

    Raises:
        UserError: there is no run, or its definition is damaged.
    """
    uri = run.uri("workflow.yaml")
    require_manifest(run.root)
    try:
        return resolve(yaml.safe_load(files.read_bytes(uri)), source=uri)
    except yaml.YAMLError as error:
        raise UserError(f"{uri} is damaged ({' '.join(str(error).split())}): run the workflow again.") from error


def dump(definition: Definition) -> str:
    """Returns the resolved definition as YAML, including all defaults."""
    stages = {name: getattr(definition.stages, name).model_dump(mode="json") for name in definition.configs}
    plain = {**definition.model_dump(mode="json", exclude={"stages"}), "stages": stages}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


@functools.cache
def _model() -> type[Definition]:
    stages: dict[str, Any] = {name: (stage(name).config_type | None, None) for name in ORDER}
    config = ConfigDict(extra="forbid", frozen=True)
    return create_model(
        "Workflow", __base__=Definition, stages=(create_model("Stages", __config__=config, **stages), ...)
    )


def overridden(raw: Any, overrides: list[str]) -> Any:
    """Returns a parsed definition with `a.b=c` overrides, whose values are YAML.

    Raises:
        UserError: one has another form, or goes deeper than the definition.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {override!r} must have the form key=value, for example stages.rank.epochs=2.")
        value = parse_yaml(text, f"--set {override!r}: the value")
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(node, dict):
                break
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"--set {override!r}: {key} goes deeper than the definition does.")
        node[last] = value
    return raw
