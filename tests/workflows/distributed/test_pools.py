from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.base import Operator
from workflows.distributed.pools import READER_CPUS, Node, Place, Pool, Step, UnschedulableError, check_fits, plan


@dataclass(frozen=True)
class Nothing(Operator):
    input_columns: ClassVar[tuple[str, ...]] = ()

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([])

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def step(name: str, pool: Pool | None = None, place: Place = "cpu") -> Step:
    return Step(name, Nothing(), pool, place)


def shape(groups):
    return [(group.name, group.pool.min) for group in groups]


def test_operators_without_a_pool_share_one_with_an_actor_per_free_cpu():
    steps = [step("a"), step("b"), step("c")]
    assert shape(plan(steps, [Node(6, 0)], blocks=99)) == [("a+b+c", 4)]
    assert shape(plan(steps, [Node(6, 0)], blocks=3)) == [("a+b+c", 3)]


def test_an_operator_with_a_pool_stands_alone_and_its_neighbours_get_the_rest():
    steps = [step("a"), step("b", Pool(min=1, max=2, num_cpus=1.5)), step("c"), step("d")]
    assert shape(plan(steps, [Node(9, 0)], blocks=99)) == [("a", 2), ("b", 1), ("c+d", 2)]


def test_what_larger_pools_leave_is_shared_by_the_rest():
    steps = [step("a"), step("b", Pool()), step("c")]
    groups = plan(steps, [Node(4, 0)], blocks=99)
    assert [(group.name, group.pool.num_cpus) for group in groups] == [("a", 0.5), ("b", 1), ("c", 0.5)]
    with pytest.raises(UnschedulableError, match="2 actors of 1 CPUs each and leaves no CPU to a, c") as caught:
        plan([step("a"), step("b", Pool(min=2)), step("c")], [Node(4, 0)], blocks=99)
    assert caught.value.group.name == "b"


def test_operators_that_a_gpu_serves_share_the_gpus():
    steps = [step("a"), step("b", place="gpu"), step("c"), step("d", place="gpu")]
    one = plan(steps, [Node(8, 1)], blocks=99)
    assert [(g.name, g.pool.min, g.pool.num_gpus) for g in one] == [
        ("a", 2, 0),
        ("b", 1, 0.5),
        ("c", 2, 0),
        ("d", 1, 0.5),
    ]
    four = plan(steps, [Node(8, 4)], blocks=99)
    assert [(g.pool.min, g.pool.num_gpus) for g in four if g.pool.num_gpus] == [(2, 1), (2, 1)]
    assert shape(plan(steps, [Node(8, 0)], blocks=99)) == [("a+b+c+d", 6)]


def test_an_operator_that_waits_for_a_server_keeps_no_cpu_waiting():
    steps = [step("a"), step("b", place="remote"), step("c")]
    groups = plan(steps, [Node(8, 0)], blocks=99)
    assert [group.name for group in groups] == ["a", "b", "c"]
    assert groups[1].pool.num_cpus < 1
    assert groups[0].pool.min == groups[2].pool.min == 2


@pytest.mark.parametrize(
    ("pool", "nodes", "says"),
    [
        (Pool(min=2), [Node(3, 0)], "asks for 2 actors of 1 CPUs each and there is room for 1: pools share 1 CPUs"),
        (Pool(min=1, max=5), [Node(6, 0)], "room for 4: "),
        (Pool(num_cpus=3), [Node(2, 0), Node(2, 0), Node(2, 0)], "room for 0: "),  # on no single node
        (Pool(num_cpus=0.5, num_gpus=0.6, min=2), [Node(8, 1)], "room for 1: .*1 GPUs"),
        (Pool(num_cpus=0.5), [Node(1, 0)], "no CPUs for its readers"),
    ],
)
def test_what_cannot_be_placed_beside_the_readers_is_refused(pool, nodes, says):
    with pytest.raises(UnschedulableError, match=says):
        plan([step("a", pool)], nodes, blocks=99)


@given(
    nodes=st.lists(st.builds(Node, st.integers(1, 9).map(float), st.integers(0, 3).map(float)), min_size=1, max_size=4),
    steps=st.lists(
        st.builds(step, st.sampled_from("abc"), place=st.sampled_from(["cpu", "gpu"])), min_size=1, max_size=5
    ),
    blocks=st.integers(1, 50),
)
def test_the_automatic_plan_fits_wherever_there_is_a_cpu_per_group_and_leaves_the_readers_theirs(nodes, steps, blocks):
    if sum(node.cpus for node in nodes) < READER_CPUS + 2 * len(steps):
        return
    groups = plan(steps, nodes, blocks=blocks)
    check_fits(groups, nodes)
    held = sum(group.pool.largest * group.pool.num_cpus for group in groups)
    assert sum(node.cpus for node in nodes) - held >= READER_CPUS
    assert [s.name for group in groups for s in group.steps] == [s.name for s in steps]


def test_labels_bound_where_actors_may_be():
    nodes = [Node(4, 0), Node(4, 1, labels={"tier": "gpu", "zone": "a"})]
    pool = Pool(min=2, num_cpus=2, labels={"tier": "gpu"})
    check_fits(plan([step("a", pool)], nodes, blocks=9), nodes)
    with pytest.raises(UnschedulableError, match="on nodes with tier=cpu and there is room for 0"):
        plan([step("a", pool.model_copy(update={"labels": {"tier": "cpu"}}))], nodes, blocks=9)
