"""What every worker of adapt_captioner does on Ray Train."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.common.colours import NAMES
from models.common.encoders import imagenet_labels
from models.common.seeds import seed_of
from models.qformer.model import CaptionModel, load_captioner
from models.qformer.settings import Architecture
from models.qformer.tokens import SPECIAL, fit_tokenizer
from models.qformer.training import Trainer
from models.qformer.weights import folder_of
from storage import files
from storage.run import RunDir
from workflows.distributed import training
from workflows.stages.adapt_captioner.data import TRAIN, map_features, pictures
from workflows.stages.adapt_captioner.settings import SCRATCH, Config

WEIGHTS = 505  # what is drawn
ARTIFACT = ("models", "captioner")


def loop(task: dict[str, Any]) -> None:
    """Trains on this worker; the first one writes the artifact at the end."""
    config, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    told = files.read_table(task["lessons"])
    model = begun(config, told, task["seed"])
    data = pictures(told, map_features(run, task["sink"], config.views), config.views, model)
    trainer = Trainer(
        model,
        data,
        config.recipe,
        seed=task["seed"],
        device=training.device(),
        state=training.restored(training.load_tensors),
    )

    def report(metrics: dict[str, Any], state: Any) -> None:
        training.report(metrics, partial(training.save_tensors, state), every_s=config.checkpoint_s)

    trainer.run(report)
    if training.is_first():
        model.save(run.uri(*ARTIFACT))


def begun(config: Config, told: pa.Table, seed: int) -> CaptionModel:
    """Returns the model that training begins with.

    From scratch its tokenizer is fitted to the sentences to learn, the labels of ImageNet and the names of colours, so
    that another catalogue's things have words in it, too.
    """
    if config.base != SCRATCH:
        return load_captioner(folder_of(config.base))
    texts = told.filter(pc.equal(told["part"], TRAIN))["sentences"].to_pylist()
    tokenizer = fit_tokenizer([*chain.from_iterable(texts), *imagenet_labels(), *NAMES], config.architecture.vocabulary)
    sizes = {**config.architecture.model_dump(), "vocabulary": max(512, tokenizer.get_vocab_size() + SPECIAL)}
    torch.manual_seed(seed_of(WEIGHTS, seed))
    return CaptionModel(Architecture.model_validate(sizes), tokenizer)
