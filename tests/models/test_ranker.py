from __future__ import annotations

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranker import FIELDS, TABLES, Ranker, RankerConfig, RankerInputs, TrainingTask, load_ranker, save_ranker
from storage.errors import UserError

CONFIG = RankerConfig(rows=dict.fromkeys(TABLES, 50), dense=("age", "rate"), content_dim=3, hidden=(8,))


def inputs(rows: int, seed: int = 0) -> RankerInputs:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4, (len(FIELDS) * rows,), generator=random).int()
    values = torch.randint(0, 50, (int(lengths.sum()),), generator=random)
    draws = torch.randn(4, rows, 3, generator=random)
    return RankerInputs(
        KeyedJaggedTensor(keys=list(FIELDS), values=values, lengths=lengths),
        dense=draws[0, :, :2],
        content=draws[1],
        history_content=draws[2],
        label=(draws[3, :, 0] > 0).float(),
    )


def ranker() -> Ranker:
    torch.manual_seed(0)
    made = Ranker(CONFIG)
    made.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1)
    made.set_statistics(torch.randn(100, 2) * 5 + 3, torch.randn(100, 3), rate=0.2)
    return made.eval()


def test_an_artifact_scores_as_its_module_did(tmp_path) -> None:
    made = ranker()
    save_ranker(str(tmp_path), CONFIG, made.state_dict())
    loaded = load_ranker(str(tmp_path))
    assert loaded.config == CONFIG
    assert not loaded.training
    torch.testing.assert_close(loaded(inputs(7)), made(inputs(7)))


def test_a_row_scores_alike_alone_and_in_a_batch() -> None:
    made, batch = ranker(), inputs(5)
    for row in range(5):
        jagged = [batch.sparse[field].to_dense()[row] for field in FIELDS]
        alone = RankerInputs(
            KeyedJaggedTensor(
                keys=list(FIELDS), values=torch.cat(jagged), lengths=torch.tensor([len(j) for j in jagged]).int()
            ),
            *(getattr(batch, name)[row : row + 1] for name in ("dense", "content", "history_content", "label")),
        )
        torch.testing.assert_close(made(alone), made(batch)[row : row + 1])


def test_the_unknown_counts_as_the_training_mean() -> None:
    made, batch = ranker(), inputs(4)
    unknown, mean = inputs(4), inputs(4)
    unknown.dense[:, 0], mean.dense[:, 0] = torch.nan, made.dense_mean[0]
    unknown.history_content[:], mean.history_content[:] = torch.nan, made.content_mean
    torch.testing.assert_close(made(unknown), made(mean))
    assert not torch.allclose(made(unknown), made(batch))


def test_statistics_leave_out_what_is_missing() -> None:
    made = ranker()
    dense = torch.tensor([[1.0, torch.nan], [3.0, torch.nan]])
    made.set_statistics(dense, torch.zeros(4, 3), rate=0.5)
    assert made.dense_mean.tolist() == [2, 0]
    assert made.dense_std[0] == pytest.approx(1)
    assert (made.content_std > 0).all()


def test_the_loss_is_cross_entropy_and_reaches_every_parameter() -> None:
    made = ranker().train()
    batch = inputs(64)
    loss, rows = TrainingTask(made)(batch)
    p = made(batch).sigmoid()
    expected = -(batch.label * p.log() + (1 - batch.label) * (1 - p).log())
    torch.testing.assert_close(rows, expected.detach())
    torch.testing.assert_close(loss, expected.mean())
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


def test_no_ranker_is_the_users_to_mend(tmp_path) -> None:
    with pytest.raises(UserError, match="no ranker"):
        load_ranker(str(tmp_path))
