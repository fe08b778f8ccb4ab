"""The shape of the code, measured: import circles, floors, entries, lines, docstrings, sizes of files, layers.

`pytest tests/test_house.py -s` prints the figures.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("workflows", "serving", "operators", "models", "storage")  # from top to ground

MOST_FLOORS = 7
MOST_ENTRIES = 12
# Only a new part may raise it: 13,583 before one's own data (`init`, tables as people export them, item_knn, the log of
# the embedded catalogue); 15,737 before the data plane (tables in blocks, partitions of the log, pieces of work, mapped
# tables, given vectors); 17,738 before the captioner that learns from a catalogue; 19,085 before `init` chose its
# shipped weights, lists were judged as they are and pooled over seeds, and negatives stood for the catalogue; 19,240
# before RPG, ensembles, averages, rescoring, penalties, long histories, and semantic IDs read by code and whitened;
# 20,070 before SPRINT, imputed vectors and bonuses of cold items, and the service: a pipeline over all recommenders,
# its routes with what guards them, stores of users, the ranker's scorer, and the explorer; 22,350 before deployments of
# their own with resources and scaling, filters and keys in the explorer, and items left out of histories; 22,500 before
# events, erasure and answers that are kept, their export, rules for lists, jobs that are followed and stopped, runs on
# object stores, and labels of nodes; 23,800 before items that are posted to a service, interpreted, scored and kept;
# 24,360 before runs side by side, rolls that replicas follow, and click-through counted as it happens; 25,250 before
# updates: fits that go on, models of two runs compared, a verdict, and a log that is read where it is new; 26,100
# before events that come in late, stores that are away, items that wait for a place, exports of runs with ratings,
# edited ones and killed ones, and fits that outlive a worker; 26,280 before tables under other names and types,
# columns that tell the label, videos without a length, and what training knows of items where lists are measured;
# 26,440 before pictures that hide their cost, fits that begin anew where an earlier one knows what is held back,
# catalogues whose scores and issues do not fit into memory at once, and settings in object stores.
MOST_CODE_LINES = 26_580
LEAST_DOCUMENTED = 1117 / 1123  # share of public modules, classes, functions and methods, before the folders
MOST_LINES_OF_A_FILE = 400
LEAST_CODE_LINES_OF_A_FILE = 5
SMALL = {"workflows.__main__", "storage.errors"}  # Python's name for a command; the one error that every layer raises

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

Graph = dict[str, set[str]]


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the layers by its dotted name; a package's is that of its `__init__`."""
    files = (file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py")))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@functools.cache
def imports() -> Graph:
    """What every module imports of the layers, also inside functions; not what stands under `if TYPE_CHECKING`."""
    return {name: set(_imported(tree(file), name)) - {name} for name, file in modules().items()}


def _imported(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for other in node.orelse:
            yield from _imported(other, name)
        return
    if isinstance(node, ast.Import):
        yield from (known for alias in node.names if (known := _known(alias.name)))
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{name} has a relative import, which this test does not follow"
        for alias in node.names:  # a module of a package, else something that the module holds
            if known := _known(f"{node.module}.{alias.name}") or _known(str(node.module)):
                yield known
    for child in ast.iter_child_nodes(node):
        yield from _imported(child, name)


def _known(name: str) -> str | None:
    return name if name in modules() else None


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972), each sorted.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    [['b', 'c']]
    """
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return sorted(found)


def children(folder: str) -> Graph:
    """The files and folders directly in a folder, and which of them import which; without the folder's `__init__`."""
    graph: Graph = {name.split(".")[1]: set() for name in modules() if name.startswith(f"{folder}.")}
    for name, others in imports().items():
        for other in others:
            if name.startswith(f"{folder}.") and other.startswith(f"{folder}."):
                graph[name.split(".")[1]].add(other.split(".")[1])
    return {name: others - {name} for name, others in graph.items()}


def longest_chain(graph: Graph) -> list[str]:
    """The longest chain of imports from above to below; a circle among the nodes counts as one floor of all of them.

    >>> longest_chain({"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()})
    ['a', 'b', 'c']
    >>> longest_chain({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    ['a', 'b', 'c']
    """
    ring = {name: tuple(circle) for circle in circles(graph) for name in circle}
    ring |= {name: (name,) for name in graph if name not in ring}

    @functools.cache
    def below(nodes: tuple[str, ...]) -> list[str]:
        next_ones = sorted({ring[other] for node in nodes for other in graph[node]} - {nodes})
        return [*nodes, *max(map(below, next_ones), key=len, default=[])]

    return max(map(below, sorted(set(ring.values()))), key=len)


def code_lines(file: Path) -> int:
    """Lines that hold a token and are no part of a docstring: neither blank nor a comment alone.

    A string or expression over several lines counts with all of them. The docstrings of a module, its classes and its
    functions are found by ast.
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree(file)):
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def public(node: Documented) -> Iterator[Documented]:
    """A module or class, and the public classes, functions and methods in it."""
    yield node
    if isinstance(node, ast.Module | ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and inner.name[0] != "_":
                yield from public(inner)


def show(figure: str) -> None:
    print(f"\n{figure}")  # noqa: T201 - read with -s


def test_no_module_imports_itself_by_way_of_others() -> None:
    found = circles(imports())
    show(f"import circles: {len(found)}")
    assert found == []


def test_workflows_have_few_floors() -> None:
    chain = longest_chain(children("workflows"))
    show(f"floors of workflows/: {len(chain)} ({' > '.join(chain)})")
    assert len(chain) <= MOST_FLOORS


@pytest.mark.parametrize("folder", ["workflows", "models"])
def test_a_folder_has_few_entries_at_its_top(folder: str) -> None:
    entries = sorted(entry.name for entry in (ROOT / folder).iterdir() if entry.name != "__pycache__")
    show(f"entries of {folder}/: {len(entries)}")
    assert len(entries) <= MOST_ENTRIES, entries


def test_there_is_little_code() -> None:
    by_layer = {
        layer: sum(code_lines(file) for name, file in modules().items() if name.split(".")[0] == layer)
        for layer in LAYERS
    }
    show(f"lines of code: {sum(by_layer.values()):,} ({by_layer})")
    assert sum(by_layer.values()) <= MOST_CODE_LINES


def test_what_is_public_has_docstrings() -> None:
    nodes = [(name, node) for name, file in modules().items() for node in public(tree(file))]
    without = [f"{name}: {getattr(node, 'name', 'module')}" for name, node in nodes if not ast.get_docstring(node)]
    share = 1 - len(without) / len(nodes)
    show(f"docstrings: {len(nodes) - len(without)} of {len(nodes)}, {share:.4f}")
    assert share >= LEAST_DOCUMENTED, without


def test_no_file_is_long_and_no_module_is_a_crumb() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in modules().items()}
    sizes = {
        name: code_lines(file) for name, file in modules().items() if file.name != "__init__.py" and name not in SMALL
    }
    longest, smallest = max(lengths, key=lambda name: lengths[name]), min(sizes, key=lambda name: sizes[name])
    show(f"longest file: {longest}, {lengths[longest]} lines; least code: {smallest}, {sizes[smallest]} lines")
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE} == {}
    assert {name: lines for name, lines in sizes.items() if lines < LEAST_CODE_LINES_OF_A_FILE} == {}


def test_imports_point_down_the_layers() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others
        if LAYERS.index(other.split(".")[0]) < LAYERS.index(name.split(".")[0])
    ]
    show(f"imports up the layers: {len(upward)}")
    assert upward == []


def test_imports_inside_functions_count_and_those_for_types_do_not() -> None:
    source = """
from typing import TYPE_CHECKING
import storage.files
from storage import run, nothing
if TYPE_CHECKING:
    from storage import cache
def late():
    from storage.hashing import hash_rows
"""
    assert set(_imported(ast.parse(source), "made.up")) == {
        "storage",
        "storage.files",
        "storage.run",
        "storage.hashing",
    }


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""One.\n\nTwo."""\n', 0),
        ("# a comment\n\nx = 1  # and code\n", 1),
        ('def f():\n    """Does."""\n    return """\n\n"""\n', 4),
        ('class A:\n    """Is."""\n\n    b = [\n        1,\n    ]\n', 4),
    ],
)
def test_lines_of_code_are_those_with_tokens_outside_docstrings(tmp_path, source: str, lines: int) -> None:
    (tmp_path / "made_up.py").write_text(source)
    assert code_lines(tmp_path / "made_up.py") == lines


@pytest.mark.parametrize("function", [circles, longest_chain])
def test_the_examples_of_the_docstrings_hold(function: Callable[..., object]) -> None:
    import doctest

    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(function, globs=globals()):
        assert runner.run(test).failed == 0
