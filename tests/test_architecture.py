"""What a reader may rely on about the repository as a whole; import-linter holds the arrows (`make lint`)."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hypergpu

ROOT = Path(__file__).parent.parent
MAX_FUNCTION_LINES = 40
"""Lines of a function, without its docstring. A longer one has more than one thing to say."""
MAX_ATTRIBUTES = 12
"""Attributes that the methods of a class assign. A class with more of them holds more than one thing."""
CAPS = "split what is above its figure; where one has fallen, lower it in the list or take the entry out"
LONG_FUNCTIONS = {
    "benchmarks/aggregation.py: main": 50,
    "benchmarks/decisions.py: measure": 43,
    "benchmarks/node_overhead.py: measure": 41,
    "coordinator/core/selection/selector.py: DynamicNodeSelector._choose": 43,
    "hypergpu/report/charts_section.py: timeline": 44,
    "hypergpu/simulation/run.py: simulate": 45,
    "hypergpu/simulation/run.py: _outcome": 48,
    "netsim_proxy/relay/frame_reader.py: FrameReader.feed": 45,
}
"""Functions above the limit, with their lines. A figure may only fall; an entry goes when its function fits."""
WIDE_CLASSES = {
    "coordinator/app.py: Coordinator": 13,
    "coordinator/core/adaptation/orchestrator.py: AdaptiveOrchestrator": 20,
    "coordinator/core/batching/controller.py: AdaptiveBatchController": 17,
    "coordinator/core/selection/selector.py: DynamicNodeSelector": 13,
    "coordinator/engine.py: Engine": 28,
    "coordinator/metrics.py: Metrics": 18,
    "hypergpu/simulation/coordinator.py: SimulatedCoordinator": 15,
    "hypergpu/simulation/node.py: SimulatedNode": 26,
    "hypergpu/simulation/records.py: Recording": 15,
    "netsim_proxy/io/server.py: Proxy": 18,
    "netsim_proxy/link/link.py: Link": 22,
    "netsim_proxy/relay/connection.py: ConnectionPair": 27,
    "netsim_proxy/relay/frame_reader.py: FrameReader": 18,
    "netsim_proxy/relay/paced_link.py: PacedLink": 13,
    "node/metrics.py: NodeMetrics": 20,
}
"""Classes above the limit, with their attributes. A figure may only fall; an entry goes when its class fits."""
CORES = {
    "hypergpu.coordinator.core": (),
    "hypergpu.node.core": (),
    "hypergpu.netsim_proxy.link": (),
    "hypergpu.netsim_proxy.relay": ("hypergpu.netsim_proxy.link.", "hpack."),
}
"""Packages without I/O, and what each may import beside itself."""
PURE = (
    sys.stdlib_module_names - {"asyncio", "multiprocessing", "random", "socket", "subprocess", "threading", "time"}
) | {
    "numpy",
}


ODD_OPENING = re.compile(r"(Of|As|What|Who|Whom|Where|How|When|Why|Whether)\s")
"""Openings of a docstring that leave out its noun: write "Path of the run", not "Of the run: its path"."""


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_public_name_can_be_imported_from_hypergpu() -> None:
    for name in hypergpu.__all__:
        assert getattr(hypergpu, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = hypergpu.NetworkSimulater


def test_importing_hypergpu_and_its_command_line_loads_no_torch() -> None:
    program = "import hypergpu.cli, sys; sys.exit(any(m in sys.modules for m in ('torch', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@cache
def parsed(path: Path) -> ast.Module:
    """Syntax tree of a file. Nobody may change it."""
    return ast.parse(path.read_text())


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Functions and classes below a node, with their names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield f"{prefix}{child.name}", child
            yield from definitions(child, f"{prefix}{child.name}.")
        else:
            yield from definitions(child, prefix)


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def attributes(cls: ast.ClassDef) -> int:
    """Number of attributes of `self` that a class assigns."""
    return len(
        {
            node.attr
            for node in ast.walk(cls)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        }
    )


def test_functions_stay_short_and_classes_narrow() -> None:
    long: dict[str, int] = {}
    wide: dict[str, int] = {}
    for path in tracked("*.py", ":!tests"):
        for name, node in definitions(parsed(path), f"{path.relative_to(ROOT)}: "):
            if isinstance(node, ast.ClassDef):
                wide[name] = attributes(node)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                long[name] = max(function_lines(node), long.get(name, 0))  # a property has one function per access
    assert {name: count for name, count in long.items() if count > MAX_FUNCTION_LINES} == LONG_FUNCTIONS, CAPS
    assert {name: count for name, count in wide.items() if count > MAX_ATTRIBUTES} == WIDE_CLASSES, CAPS


def test_the_measures_of_functions_and_classes() -> None:
    source = (
        'class A:\n    def f(self):\n        """Doc.\n\n        More.\n        """\n'
        "        self.x: int = 1\n        self.x, self.y = 1, 2\n        other.z = 3\n"
    )
    (_, cls), (name, function) = definitions(ast.parse(source), "")
    assert isinstance(cls, ast.ClassDef)
    assert isinstance(function, ast.FunctionDef)
    assert (name, attributes(cls), function_lines(function)) == ("A.f", 2, 4)


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a tree, without those that only type checkers see."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


@cache
def imports_of(path: Path, *, of_types: bool = True) -> list[str]:
    """Every module that a file imports, wherever in it; relative imports resolved.

    Args:
        path: the file.
        of_types: whether to list imports under `if TYPE_CHECKING` too.
    """
    package = path.relative_to(ROOT).parent.parts
    if package and package[0] != "hypergpu":
        package = ("hypergpu", *package)  # a service's folder is a link in the package
    found = []
    for node in ast.walk(parsed(path)) if of_types else run_time_nodes(parsed(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize(("core", "others"), CORES.items())
def test_a_pure_core_imports_itself_common_numpy_and_what_of_the_standard_library_is_pure(
    core: str, others: tuple[str, ...]
) -> None:
    files = tracked(f"{core.removeprefix('hypergpu.').replace('.', '/')}/**.py")
    assert files
    looks_out = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imports_of(path)
        if module.partition(".")[0] not in PURE
        and not f"{module}.".startswith((f"{core}.", "hypergpu.common.", *others))
    ]
    assert looks_out == []


def our_modules() -> dict[str, Path]:
    """Every module of the package with its file; a service's folder is a link in it."""
    found = {}
    for path in tracked("coordinator/**.py", "node/**.py", "netsim_proxy/**.py", "hypergpu/**.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "hypergpu" else ("hypergpu", *parts))
        found[name.removesuffix(".__init__")] = path
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = our_modules()

    def module_of(name: str) -> str:
        while name and name not in modules:
            name = name.rpartition(".")[0]  # an imported name is in a module
        return name

    graph = {
        name: {module_of(each) for each in imports_of(path, of_types=False)} - {"", name}
        for name, path in modules.items()
    }
    assert len(graph) > 300
    tuple(TopologicalSorter(graph).static_order())  # a CycleError names the circle


_TORCH_USERS = ("checkpoints", "held_out", "initial_model", "model_files", "resuming")
"""Modules of the coordinator that import torch."""


def test_torch_is_imported_where_the_architecture_says() -> None:
    importers = {
        name.removeprefix("hypergpu.")
        for name, path in our_modules().items()
        if any(module.partition(".")[0] == "torch" for module in imports_of(path))
    }
    coordinator = {f"coordinator.{module}" for module in _TORCH_USERS}
    elsewhere = {name for name in importers - coordinator if not name.startswith(("tasks.", "node."))}
    assert elsewhere == {"simulation.gradients"}
    assert coordinator <= importers
    assert not any(name.startswith("node.core") for name in importers)


def test_torch_is_pinned_alike_where_it_is_installed_and_where_it_is_required() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    series = (
        next(line for line in extras["train"] if line.startswith("torch")).removeprefix("torch==").removesuffix(".*")
    )
    assert re.search(rf"torch==({re.escape(series)}\.\d+)", (ROOT / "deploy/install-torch").read_text())


def test_the_readme_shows_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", readme)) <= targets
    program = "from hypergpu.cli import main; main(['--help'])"
    help_text = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"`hypergpu ([a-z]+)", readme))
    assert commands <= set(re.findall(r"│ ([a-z]+) ", help_text))


def test_links_in_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    targets = [(document, target) for document in tracked("*.md") for target in link.findall(document.read_text())]
    broken = [f"{document.name}: {target}" for document, target in targets if not (document.parent / target).exists()]
    assert broken == []


def odd_openings(path: Path) -> list[str]:
    """Return the docstrings of a file, those of attributes included, that begin without a noun or a verb."""
    texts = [
        (node.lineno, node.value.value)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [
        f"{path.relative_to(ROOT)}:{line}: {text.strip().splitlines()[0]}"
        for line, text in texts
        if ODD_OPENING.match(text.strip())
    ]


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    assert [opening for path in tracked("*.py", ":!tests") for opening in odd_openings(path)] == []
