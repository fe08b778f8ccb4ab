"""The recommenders of a run: what they learn from, how they are built, and what the language model's artifact holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.common.jagged import Jagged
from models.generation.trie import Trie
from models.recommenders import build as recommenders
from models.recommenders.artifacts import load
from models.recommenders.build import scaled
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.product_quantizer import Quantized, quantize
from models.recommenders.rpg import Rpg
from models.recommenders.settings import LanguageModelSettings, ProductCodesSettings, RpgSettings, SasRecSettings
from operators.columns import matrix_column
from operators.features.ranker_inputs import aligned, read_embeddings
from operators.log.partitions import item_ids
from operators.log.split import SplitLeaveLast
from storage import files
from storage.artifacts import load_model
from storage.errors import UserError
from storage.run import RunDir
from tests.logs import write_log
from tests.models.generation.test_backbones import saved
from workflows.engine.stage import Context
from workflows.stages.generate import build
from workflows.stages.generate.data import Data, write_data
from workflows.stages.generate.earlier import Earlier

ITEMS, USERS, EVENTS = 40, 50, 8
SPLIT = SplitLeaveLast(kind="leave_last")
FIT = {"steps": 60, "batch_size": 16, "validate_every": 20, "learning_rate": 0.01, "warmup": 5, "precision": "fp32"}
SASREC = {"model": {"dim": 16, "inner": 32, "length": 8}, "fit": FIT}
PRODUCT_CODES = {**SASREC, "codes": 4, "codewords": 16, "width": 4}
RPG = {**SASREC, "codes": 4, "codewords": 16}
LANGUAGE_MODEL = {
    "backbone": {"name": "tiny", "layers": 1, "dim": 16, "heads": 2, "mlp": 32},
    "tasks": ["sids_to_sid", "title_to_sid"],
    "text_tokens": 300,
    "held_out": 0.25,
    "history": 8,
    "beams": 20,
    "fit": FIT,
}


def write_run(root: Path) -> RunDir:
    """A run up to quantize, in which every user goes from item to item by the same chain."""
    run, random = RunDir(str(root)), np.random.default_rng(0)
    ids = [f"item {n}" for n in range(ITEMS)]
    titles = [None if n % 10 == 3 else f"Thing of kind {n % 4}" for n in range(ITEMS)]
    captions = [None if n % 10 == 4 else f"a picture of {n}" for n in range(ITEMS)]
    run.write_table(pa.table({"item_id": ids, "title": titles, "caption": captions}), "items")
    vectors = matrix_column(random.normal(size=(ITEMS, 6)).astype(np.float32))
    run.write_table(pa.table({"item_id": ids, "embedding": vectors}), "embeddings")
    codes = np.stack([np.arange(ITEMS) % 4, np.arange(ITEMS) // 4 % 5, np.arange(ITEMS) // 20], axis=1)
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(codes)}), "sids")
    run.write_json({"codebook_sizes": [4, 5]}, "models", "quantizer", "config.json")
    user, step = np.divmod(np.arange(USERS * EVENTS), EVENTS)
    log = pa.table(
        {
            "user_id": [f"user {n}" for n in user],
            "item_id": [ids[n] for n in (7 * user + step) % ITEMS],
            "timestamp": pa.array(step * 1_000_000 + user, pa.timestamp("us", tz="UTC")),
        }
    )
    write_log(run, log.take(random.permutation(log.num_rows)))
    return run


def read(run: RunDir, split: SplitLeaveLast = SPLIT) -> Data:
    context = Context(run, run.root, 0, "f", log=str, progress=lambda done, total: None, split=split)
    return write_data(context, "generate", history=8, repeats=True, most={"valid": 1_000, "test": 1_000})[0]


def row_of(data: Data) -> dict[str, int]:
    return {name: row for row, name in enumerate(data.item_ids.to_pylist())}


def rows(lists: Jagged) -> list[list[int]]:
    return [part.tolist() for part in lists.values.split(lists.offsets.diff().tolist())]


def test_codes_say_how_items_look_and_who_chose_them(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    ids, settings = item_ids(run), ProductCodesSettings.model_validate(PRODUCT_CODES)
    found = {}
    for weight in (0.0, 1.0, 1.0):
        changed = settings.model_copy(update={"collaborative": weight})
        build.write_codes(run, changed, ids, SPLIT, seed=3)
        _, tensors = load_model(build.codes_uri(run, "product_codes"), build.CODES)
        quantized = Quantized(**tensors)
        assert quantized.codes.shape == (ITEMS, 4)
        assert quantized.codewords.shape == (4, 16, 4)
        if weight in found:
            assert torch.equal(found[weight].codes, quantized.codes)  # the same again
        found[weight] = quantized
    assert not torch.equal(found[0.0].codes, found[1.0].codes)
    with pytest.raises(UserError, match=r"lower stages\.generate\.product_codes\.codewords to 32 or less"):
        build.write_codes(run, settings.model_copy(update={"codewords": 64}), ids, SPLIT, seed=3)


def test_items_that_nobody_chose_are_coded_as_their_content_lets_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """What users chose is a linear function of the embeddings here, so that cold items can have their true codes."""
    random, given = np.random.default_rng(0), list[dict]()
    settings = ProductCodesSettings.model_validate({**PRODUCT_CODES, "collaborative": 2.0})
    embeddings = random.normal(size=(ITEMS, 6)).astype(np.float32)
    chosen = (embeddings @ random.normal(size=(6, 4))).astype(np.float32)
    cold, drawn = np.arange(ITEMS) % 5 == 0, np.arange(ITEMS) % 3 == 0

    def noted(vectors: np.ndarray, **rest: Any) -> Quantized:
        given.append({"vectors": vectors, **rest})
        return quantize(vectors, **rest)

    monkeypatch.setattr(recommenders, "quantize", noted)
    for rows in (chosen, np.where(cold[:, None], np.float32(np.nan), chosen)):
        recommenders.quantize_items(settings, embeddings, rows, drawn=drawn, seed=0)
    assert given[0]["learned"] is None  # where no item is cold nothing changes
    assert np.array_equal(given[0]["vectors"], np.hstack([scaled(embeddings), 2 * scaled(chosen)]))
    vectors, learned = given[1]["vectors"], given[1]["learned"]
    centred = chosen - chosen[~cold].mean(0)
    true = 2 * centred / np.sqrt(np.square(centred[~cold]).sum(1).mean())
    np.testing.assert_allclose(vectors[:, 6:], true, atol=0.02)
    other = (vectors != learned).any(1)
    assert other[drawn & ~cold].all()  # their own codes are of the true vectors
    assert not other[~drawn | cold].any()


def test_items_without_a_choice_have_no_vector_and_the_drawn_ones_depend_on_ids_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = write_run(tmp_path), list[tuple]()
    settings = ProductCodesSettings.model_validate({**PRODUCT_CODES, "imputed": 0.5})
    ids = item_ids(run)
    vectors = build.collaborative_vectors(run, SPLIT, width=4, seed=3).slice(2)  # as if nobody had chosen two items
    monkeypatch.setattr(build, "collaborative_vectors", lambda *given, **named: vectors)

    def noted(settings: Any, embeddings: np.ndarray, chosen: np.ndarray, *, drawn: np.ndarray, seed: int) -> Quantized:
        given.append((chosen, dict(zip(ids.to_pylist(), drawn.tolist(), strict=True))))
        return recommenders.quantize_items(settings, embeddings, chosen, drawn=drawn, seed=seed)

    monkeypatch.setattr(build, "build", SimpleNamespace(quantize_items=noted))
    for seed, order in ((3, ids), (3, ids.take(pa.array(range(ITEMS)[::-1]))), (4, ids)):
        ids = order
        build.write_codes(run, settings, ids, SPLIT, seed=seed)
    chosen, drawn = given[0]
    assert np.flatnonzero(np.isnan(chosen).any(1)).tolist() == [0, 1]
    assert 10 < sum(drawn.values()) < 30
    assert given[1][1] == drawn != given[2][1]


def test_codes_of_rpg_stand_beside_and_say_how_items_look_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), RpgSettings.model_validate(RPG)
    build.write_codes(run, settings, data.item_ids, SPLIT, seed=3)
    _, tensors = load_model(build.codes_uri(run, "rpg"), build.CODES)
    assert tensors["codewords"].shape == (4, 16, 2)  # of 6 dimensions, filled up to 8
    model = build.training_task(settings, run, data, seed=1).learner
    assert isinstance(model, Rpg)
    assert torch.equal(model.codes, tensors["codes"])
    with pytest.raises(UserError, match=r"lower stages\.generate\.rpg\.codewords to 32 or less"):
        build.write_codes(run, settings.model_copy(update={"codewords": 64}), data.item_ids, SPLIT, seed=3)


def test_codes_of_another_width_begin_anew(tmp_path: Path) -> None:
    before, run = write_run(tmp_path / "before"), write_run(tmp_path / "run")
    ids, settings = item_ids(run), ProductCodesSettings.model_validate(PRODUCT_CODES)
    build.write_codes(before, settings, ids, SPLIT, seed=3)
    earlier = Earlier(before, ITEMS, torch.arange(ITEMS))
    assert earlier.codes(settings) is not None
    wider = settings.model_copy(update={"model": settings.model.model_copy(update={"dim": 24})})
    build.write_codes(run, wider, ids, SPLIT, seed=3, earlier=earlier)
    assert load_model(build.codes_uri(run, "product_codes"), build.CODES)[1]["codewords"].shape == (4, 16, 6)
    rpg = RpgSettings.model_validate(RPG)
    build.write_codes(before, rpg, ids, SPLIT, seed=3)
    assert earlier.codes(rpg) is not None  # whose model reads no codeword


def test_product_codes_read_the_embeddings_where_they_are_to(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data = read(run)
    for content in (False, True):
        model = {**PRODUCT_CODES["model"], "content": content, "residual": 0.2, "logits": "cosine"}
        settings = ProductCodesSettings.model_validate({**PRODUCT_CODES, "model": model})
        build.write_codes(run, settings, data.item_ids, SPLIT, seed=3)
        learner = build.training_task(settings, run, data, seed=1).learner
        assert (learner.content is not None) == content
        learner.save(str(tmp_path / "model"), learner.state_dict())
        loaded = load(str(tmp_path / "model"))
        wanted = learner.eval().recommend(data.valid.histories, k=5)
        assert torch.equal(loaded.recommend(data.valid.histories, k=5).items, wanted.items)
    embeddings = aligned(data.item_ids, read_embeddings(run)).numpy()
    assert torch.equal(learner.content, torch.from_numpy(scaled(embeddings)))


def test_a_task_begins_the_same_and_draws_windows_of_its_sequences(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), SasRecSettings.model_validate(SASREC)
    tasks = [build.training_task(settings, run, data, seed=1) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*(one.learner.parameters() for one in tasks), strict=True))
    chains = {tuple(row) for row in rows(data.sequences)}
    for step in range(5):
        (windows,), (again,) = (one.draw(step) for one in tasks)
        assert torch.equal(windows, again)
        assert {tuple(row) for row in windows.tolist()} <= chains


def test_the_corpus_says_what_the_run_says_and_holds_some_items_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    data, settings = read(run), LanguageModelSettings.model_validate(LANGUAGE_MODEL)
    corpus, again = (build.read_corpus(settings, run, data.item_ids, data.sequences, seed=1) for _ in range(2))
    vocabulary = corpus.vocabulary
    assert vocabulary.sizes == (4, 5, 3)
    assert torch.equal(corpus.held_out, again.held_out)
    assert int(corpus.held_out.sum()) == ITEMS // 4
    titles, captions = rows(corpus.titles), rows(corpus.captions)
    for name, row in row_of(data).items():
        n = int(name.removeprefix("item "))
        assert corpus.sid_codes[row].tolist() == [n % 4, n // 4 % 5, 1 + n // 20]
        assert vocabulary.decode(titles[row]).strip() == ("" if n % 10 == 3 else f"Thing of kind {n % 4}")
        assert vocabulary.decode(captions[row]).strip() == ("" if n % 10 == 4 else f"a picture of {n}")
    bare = settings.model_copy(update={"tasks": ()})
    corpus = build.read_corpus(bare, run, data.item_ids, data.sequences, seed=1)
    assert corpus.vocabulary.text is None
    assert not corpus.held_out.any()


def test_a_language_model_recommends_as_it_did_without_the_run_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    data, settings = read(run), LanguageModelSettings.model_validate(LANGUAGE_MODEL)
    task = build.training_task(settings, run, data, seed=1)
    recommender = task.recommender(task.learner.eval())
    assert task.losses(task.learner).keys() == {task.name for task in settings.tasks}
    uri = build.artifact_uri(run, "language_model")
    with pytest.raises(UserError, match="There is no recommender"):
        load(uri)
    recommender.save(uri, task.learner.state_dict())
    files.filesystem(uri)[0].mv(uri, str(tmp_path / "moved"), recursive=True)
    files.remove(run.root)
    loaded = load(str(tmp_path / "moved"))
    assert isinstance(loaded, LanguageModelRecommender)
    assert loaded.settings == settings
    wanted, found = (one.recommend(data.test.histories, k=5) for one in (recommender, loaded))
    assert torch.equal(found.items, wanted.items)
    torch.testing.assert_close(found.scores, wanted.scores)
    assert found.exact is not None
    assert found.exact.shape == (len(data.test.target),)
    files.remove(str(tmp_path / "moved" / "model.safetensors"))
    with pytest.raises(UserError, match=r"There is no recommender at .*moved\.$"):
        load(str(tmp_path / "moved"))


def test_a_fit_builds_its_trie_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    task = build.training_task(LanguageModelSettings.model_validate(LANGUAGE_MODEL), run, read(run), seed=1)
    monkeypatch.setattr(Trie, "build", None)
    assert task.recommender(task.learner.eval()).recommend(read(run).valid.histories, k=3).items.shape == (USERS, 3)


def test_content_alone_does_not_use_up_the_patience(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for schedule, at in (("content_first", 30), ("joint", 0)):
        settings = LanguageModelSettings.model_validate({**LANGUAGE_MODEL, "schedule": schedule})
        assert settings.fit.steps == 60
        assert build.training_task(settings, run, read(run), seed=1).patience_from == at


def test_a_fit_that_goes_on_draws_all_tasks_throughout(tmp_path: Path) -> None:
    """It has a quarter of the steps: no more than `content_first` would give to content alone."""
    run = write_run(tmp_path)
    data, first = read(run), LanguageModelSettings.model_validate({**LANGUAGE_MODEL, "schedule": "content_first"})
    joint, model = first.model_copy(update={"schedule": "joint"}), build.training_task(first, run, data, seed=1).learner
    corpus = build.read_corpus(first, run, data.item_ids, data.sequences, seed=1, vocabulary=model.vocabulary)

    def drawn(settings: LanguageModelSettings, earlier: Any = None) -> tuple[list[list[int]], int]:
        task = recommenders.language_model_task(settings, corpus, data.valid, seed=1, earlier=earlier)
        return [batch.tokens.flatten().tolist() for batch in task.draw(0)], task.patience_from

    assert drawn(first) != drawn(joint)
    assert drawn(first, earlier=model) == drawn(joint)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_language_model_that_was_trained_before_goes_on_from_its_own_weights(tmp_path: Path, lora: Any) -> None:
    run, folder = write_run(tmp_path / "run"), saved(tmp_path / "model", "llama")
    data, backbone = read(run), {"name": "pretrained", "model": str(folder), "lora": lora}
    settings = LanguageModelSettings.model_validate({**LANGUAGE_MODEL, "backbone": backbone})
    task = build.training_task(settings, run, data, seed=1)
    for part in task.learner.parameters():
        if part.requires_grad:
            torch.nn.init.normal_(part, std=0.1)
    task.recommender(task.learner).save(build.artifact_uri(run, "language_model"), task.learner.state_dict())
    earlier = Earlier(run, ITEMS, torch.arange(ITEMS))
    again = build.training_task(settings, run, data, seed=2, earlier=earlier)
    assert again.warm
    assert any("lora" in name for name, _ in again.learner.named_parameters()) == (lora is not None)
    tokens = torch.tensor([[5, 6, 301, 305, 310, 7]])
    found, wanted = (one.learner.backbone.eval()(input_ids=tokens).logits for one in (again, task))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
