from __future__ import annotations

import pytest
import torch

from storage.artifacts import load_model, load_one_of, rebuilding, save_model
from storage.errors import ArtifactError, UserError


@pytest.fixture
def artifact(tmp_path):
    uri = str(tmp_path / "model")
    save_model(uri, "quantizer", {"levels": [4, 4]}, {"w": torch.arange(6.0).reshape(2, 3).T})
    return uri


def test_config_and_tensors_come_back(artifact):
    config, tensors = load_model(artifact, "quantizer")
    assert config == {"levels": [4, 4]}
    assert torch.equal(tensors["w"], torch.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("wrong", [torch.nan, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path, wrong):
    uri = str(tmp_path / "model")
    save_model(uri, "ranker", {}, {"sound": torch.ones(2), "whole": torch.ones(2).int(), "w": torch.tensor([1, wrong])})
    with pytest.raises(UserError, match=r"no numbers in w\.$"):
        load_model(uri, "ranker")


def test_a_kind_is_judged_before_the_weights_are_read(artifact, tmp_path):
    kind, config, _ = load_one_of(artifact, ("ranker", "quantizer"), "model")
    assert (kind, config) == ("quantizer", {"levels": [4, 4]})
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="holds a quantizer, not a model"):
        load_one_of(artifact, ("ranker", "projector"), "model")


def test_a_gpu_without_room_is_no_damage():
    with pytest.raises(torch.OutOfMemoryError), rebuilding("models/ranker", "ranker"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ArtifactError, match="of another version"), rebuilding("models/ranker", "ranker"):
        raise RuntimeError("size mismatch")


def test_absent_foreign_and_damaged_artifacts_are_one_sentence(artifact, tmp_path):
    with pytest.raises(UserError, match="There is no ranker"):
        load_model(str(tmp_path / "nothing"), "ranker")
    with pytest.raises(UserError, match="holds a quantizer, not a ranker"):
        load_model(artifact, "ranker")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        load_model(artifact, "quantizer")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_model(artifact, "quantizer")
