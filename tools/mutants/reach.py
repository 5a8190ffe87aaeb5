"""Map from each line to the tests that reach it, measured by one run under coverage."""

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import coverage

TRANSCRIPTS = "tests/hypergpu/simulation/test_transcripts.py"
TARGETS: Mapping[str, tuple[str, ...]] = {
    "hypergpu/common/token.py": ("tests/common/test_token.py",),
    "coordinator/core": ("tests/coordinator", TRANSCRIPTS),
    "coordinator/run_dir.py": ("tests/coordinator",),
    "coordinator/run_lock.py": ("tests/coordinator/test_run_lock.py",),
    "coordinator/files.py": ("tests/coordinator/test_run_dir.py", "tests/coordinator/test_checkpoints.py"),
    "coordinator/checkpoints.py": ("tests/coordinator/test_checkpoints.py",),
    "coordinator/resuming.py": ("tests/coordinator/test_resuming.py",),
    "coordinator/model_files.py": ("tests/coordinator/test_model_files.py",),
    "coordinator/uploads.py": ("tests/coordinator",),
    "coordinator/callers.py": ("tests/coordinator",),
    "hypergpu/common/grpc_server.py": ("tests/common/test_grpc_server.py", "tests/common/test_roles.py"),
    "hypergpu/common/roles.py": ("tests/common/test_roles.py",),
    "coordinator/round_log.py": ("tests/coordinator/test_round_log.py", "tests/coordinator/test_durability.py"),
    "coordinator/durability.py": ("tests/coordinator/test_durability.py", "tests/crashes"),
    "coordinator/storage.py": ("tests/coordinator/test_round_log.py", "tests/coordinator/test_durability.py"),
    "coordinator/engine.py": ("tests/coordinator",),
    "node/core": ("tests/node",),
    "node/calibration.py": ("tests/node/test_calibration.py",),
    "netsim_proxy/link": ("tests/netsim_proxy/link", TRANSCRIPTS),
    "netsim_proxy/relay": ("tests/netsim_proxy",),
}
"""Mutated files, and the tests that must notice."""

PINNED = ("test_transcripts.py", "test_reports.py", "test_lifecycle_table.py")
"""Tests that pin down whole runs: slower than most, and the likeliest to notice."""
_DATA = Path(".mutants-coverage")
LONGEST_TEST_SECONDS = 20.0
"""A test that takes longer serves no mutant: what is worth a mutant is worth a quick test."""
MOST_TESTS = 60
"""Tests that one mutant is tried with, beside those that pin down whole runs."""
MOST_FAILED = 5
"""Tests that may fail without any mutant, as some do on a busy machine: more are no accident."""


def files_of(paths: Sequence[str]) -> list[Path]:
    """Python files at paths below the root, without generated ones."""
    found = []
    for path in paths:
        whole = Path(path)
        found += sorted(whole.rglob("*.py")) if whole.is_dir() else [whole]
    return [file for file in found if file.name != "__init__.py"]


def tests_for(path: str) -> tuple[str, ...]:
    """Test paths that are meant to notice a change in a file."""
    return next((tests for target, tests in TARGETS.items() if path == target or path.startswith(f"{target}/")), ())


def learn(files: Sequence[Path], cache: Path) -> dict[str, dict[str, list[str]]]:
    """For each file and line the tests that reach it, the quickest first; kept until a file or test changes."""
    names = [file.as_posix() for file in files]
    suites = sorted({suite for name in names for suite in tests_for(name)})
    sources = [*files, *files_of(suites)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()
    if cache.exists():
        known = json.loads(cache.read_text())
        if known["digest"] == digest:
            return dict(known["tests"])
    print(f"learning what {', '.join(suites)} reach …", flush=True)
    seconds = _run_under_coverage(suites, names)  # without the tests that failed: they judge no mutant
    data = coverage.CoverageData(str(_DATA))
    data.read()
    tests: dict[str, dict[str, list[str]]] = {}
    for name in names:
        by_line = data.contexts_by_lineno(str(Path.cwd() / name))
        whole = sorted({context for contexts in by_line.values() for context in contexts})
        tests[name] = {
            # What runs at import, and for no test alone, is seen by all tests that reach the file.
            str(line): _quickest(contexts if any(contexts) else whole, seconds)
            for line, contexts in by_line.items()
        }
    cache.write_text(json.dumps({"digest": digest, "tests": tests}))
    _DATA.unlink()
    return tests


def _is_pinned(test: str) -> bool:
    return any(name in test for name in PINNED)


def _quickest(contexts: Sequence[str], seconds: Mapping[str, float]) -> list[str]:
    quick = [test for test in contexts if seconds.get(test, math.inf) < LONGEST_TEST_SECONDS]
    in_order = sorted(quick, key=lambda test: (seconds[test], test))
    own = [test for test in in_order if not _is_pinned(test)]
    return own[:MOST_TESTS] + [test for test in in_order if _is_pinned(test)]


_RECORDER = """
import coverage, json, pytest, time
seconds, failed = {}, set()
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    current = coverage.Coverage.current()
    current.switch_context(item.nodeid)
    began = time.perf_counter()
    yield
    seconds[item.nodeid] = time.perf_counter() - began
    current.switch_context("")
def pytest_runtest_logreport(report):
    if report.failed:
        failed.add(report.nodeid)
def pytest_sessionfinish():
    import os
    with open(os.environ["MUTANTS_SECONDS"], "w") as file:
        json.dump([{test: taken for test, taken in seconds.items() if test not in failed}, sorted(failed)], file)
"""


def _run_under_coverage(suites: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "mutants_recorder.py").write_text(_RECORDER)
        times = Path(scratch) / "seconds.json"
        paths = os.pathsep.join([scratch, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths, "MUTANTS_SECONDS": str(times)}
        include = ",".join(str(Path.cwd() / name) for name in names)
        command = [sys.executable, "-m", "coverage", "run", f"--include={include}"]
        command += [f"--data-file={_DATA}", "-m", "pytest", "-q", "-p", "mutants_recorder"]
        command += ["-m", "not e2e and not containers", *suites]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds, failed = json.loads(times.read_text()) if times.exists() else ({}, [])
        if len(failed) > MOST_FAILED or not seconds:
            sys.exit(f"the tests fail without any mutant:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        for test in failed:
            print(f"left out, as it fails without any mutant: {test}", flush=True)
        return dict(seconds)
