"""What a reader may rely on about the repository as a whole; import-linter holds the arrows (`make lint`)."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hypergpu

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 500
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


def test_source_files_stay_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}"
        for path in tracked("*.py", ":!tests")
        if len(path.read_text().splitlines()) > LONGEST_FILE
    ]
    assert long == []


def imports_of(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it; relative imports resolved."""
    package = path.relative_to(ROOT).parent.parts
    if package and package[0] != "hypergpu":
        package = ("hypergpu", *package)  # a service's folder is a link in the package
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
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
