"""The threat model: each test that it names exists, and so does each file; and what it says of clocks."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.documents import ROOT

DOCUMENT = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| `(tests/\S+?)` \|$", DOCUMENT, re.MULTILINE)
TIME_OF_DAY = re.compile(r"\btime\.time\(|\bdatetime\.now\(|\bdate\.today\(")
READERS = {
    "coordinator/control.py": "tells it in GetStatus, for `hypergpu doctor`",
    "hypergpu/certificates.py": "dates of certificates",
    "hypergpu/cli/doctor.py": "compares it with the coordinator's",
    "hypergpu/common/tls.py": "dates of certificates",
    "hypergpu/outlets/run_files.py": "dates what TensorBoard and others show",
}
"""Files that read the time of day, and what for."""


def functions(file: str) -> Iterator[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return (node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("test", [row[2] for row in ROWS])
def test_each_row_names_a_test_that_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert (ROOT / file).is_file()
    assert not name or name in functions(file)


def test_no_row_is_read_wrongly() -> None:
    assert len(ROWS) > 30
    assert DOCUMENT.count("`tests/") == len(ROWS) + DOCUMENT.count("(`tests/")
    assert len({row[0] for row in ROWS}) == len(ROWS)


def test_rows_that_take_minutes_say_so() -> None:
    for fault, _, test in ROWS:
        file, _, name = test.partition("::")
        source = (ROOT / file).read_text(encoding="utf-8")
        is_soak = "pytestmark" in source and "mark.soak" in source.split("def ")[0]
        assert ("*soak*" in fault) == (bool(name) and is_soak), test


def test_the_time_of_day_decides_nothing() -> None:
    files = [
        file for folder in ("coordinator", "node", "netsim_proxy", "hypergpu") for file in (ROOT / folder).rglob("*.py")
    ]
    found = {
        str(file.relative_to(ROOT))
        for file in files
        if not any(folder.is_symlink() for folder in file.parents)
        and TIME_OF_DAY.search(file.read_text(encoding="utf-8"))
    }
    assert {name for name in found if not name.startswith("hypergpu/simulation/")} == set(READERS)
