"""The tool that judges the tests: what it changes, and that it tells a noticed change from an unnoticed one."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutants.changes import changes_of, nodes_of, with_change
from tools.mutants.reach import TARGETS

ROOT = Path(__file__).parent.parent.parent


def variants(code: str) -> set[str]:
    """The whole code with each single change made."""
    found = set()
    for number, _ in enumerate(nodes_of(ast.parse(code))):
        tree = ast.parse(code)
        node = list(nodes_of(tree))[number]
        found |= {ast.unparse(with_change(tree, node, change)) for _, change in changes_of(node)}
    return found


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("a < b", {"a <= b"}),
        ("a >= b", {"a > b"}),
        ("a == b", {"a != b"}),
        ("a + b", {"a - b"}),
        ("'text' + b", set()),
        ("a and b", {"a or b"}),
        ("not a", {"a"}),
        ("a = True", {"a = False"}),
        ("a = 3", {"a = 4"}),
        ("a = 0.5", {"a = 2.0"}),
        ("a[:n]", {"a[n:]"}),
        ("a[n:]", {"a[:n]"}),
        ("min(a, b)", {"max(a, b)", "pass"}),
        ("close()", {"pass"}),
        ("log.info('told')", set()),
        ("draws.uniform(3) < b", {"draws.uniform(4) < b"}),
        ("a = 1 << 30", set()),
        ("a = 1 << 29", {"a = 2 << 29", "a = 1 << 30"}),
        ("a = Joined | Left | None", set()),
        ("a = FLAG | b", {"a = FLAG & b"}),
        ("a += b", {"a -= b"}),
        ("def f(a: Literal[3]) -> 3: return a", {"def f(a: Literal[3]) -> 3:\n    return None"}),
        ("raise Fault()", {"pass"}),
        ("if a:\n    b = c", {"if True:\n    b = c"}),
    ],
)
def test_what_is_changed(code: str, changed: set[str]) -> None:
    assert variants(code) == changed


TRIALS = """
import json
from pathlib import Path
from tools.mutants.changes import Mutant, mutants_of
from tools.mutants.trial import try_mutant
mutants = [*mutants_of(Path("house/shape.py")), Mutant("house/shape.py", 9, 0, 0, "unreached")]
trials = [(m, try_mutant(m, [] if m.line == 9 else ["tests/test_shape.py"], 60.0)) for m in mutants]
print(json.dumps([[m.line, m.what, outcome.noticed, outcome.how] for m, outcome in trials]))
"""


def test_a_noticed_change_is_told_from_one_that_no_test_checks(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house/shape.py").write_text(
        "def area(a, b):\n    return a * b\n\n\ndef unused(a):\n    return a + 1\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_shape.py").write_text(
        "from house.shape import area, unused\n\n\ndef test_area():\n    assert area(2, 3) == 6\n    unused(1)\n"
    )
    # In a process of its own: a fork is for one without threads, and that of the tests has gRPC's.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", TRIALS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)) == [
        [2, "* becomes /", True, "a test fails"],
        [2, "returns None", True, "a test fails"],
        [6, "+ becomes -", False, "no test fails"],
        [6, "1 becomes 2", False, "no test fails"],
        [6, "returns None", False, "no test fails"],
        [9, "unreached", False, "no test reaches it"],
    ]


def test_every_target_exists_and_has_tests() -> None:
    for target, suites in TARGETS.items():
        assert (ROOT / target).exists()
        assert suites
        assert all((ROOT / suite).exists() for suite in suites)
