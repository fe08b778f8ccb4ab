from __future__ import annotations

from pathlib import Path

from benchmarks.demo_ceiling import measure
from workflows.catalogs.synthetic.sample import write_sample


def test_who_knows_the_recipe_and_histories_stands_between_popularity_and_the_truth(tmp_path: Path) -> None:
    write_sample(str(tmp_path / "catalog"), items=60, users=300, seed=2)
    found = measure(str(tmp_path / "catalog"))
    assert found["popularity"]["ndcg@10"] < found["histories"]["ndcg@10"] < found["truth"]["ndcg@10"]
    low, high = found["gap_closed"]["histories_interval"]
    assert 0 < low < found["gap_closed"]["histories"] < high < 1
