"""The commands that the documents show, in order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "docs/contribution.md",
    "docs/ledger.md",
    "docs/live-page.md",
    "docs/models.md",
    "docs/netsim.md",
    "docs/outlets.md",
    "docs/planning.md",
    "docs/settings.md",
    "examples/README.md",
    "docs/tutorial.md",
    "CONTRIBUTING.md",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| (.+?) \|", re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
_PROGRAMS = ("hypergpu", "make", "python", "bash", "openssl", "docker", "cp", ".venv/bin/pytest")


@dataclass(frozen=True, slots=True)
class Command:
    """A command line as it is written, without its comment."""

    document: str
    line: str


def commands(document: str) -> Iterator[Command]:
    """Yield the commands of shell blocks and of the first column of tables, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fences = [(match.start(), match.end(), match) for match in _FENCE.finditer(text)]
    found: list[tuple[int, str]] = []
    for start, _, match in fences:
        if match[1] in {"sh", ""}:
            lines = match[2].replace("\\\n", " ").splitlines()
            found += [(start, line) for line in map(_plain, lines) if line.startswith(_PROGRAMS)]
    for row in _ROW.finditer(text):
        if not any(start <= row.start() < end for start, end, _ in fences):
            spans = _SPAN.findall(row[1])
            found += [(row.start(), span) for span in spans if span.split()[0] in _PROGRAMS and " " in span]
    for _, line in sorted(found, key=lambda each: each[0]):
        yield Command(document, line)


def python_blocks(document: str) -> list[str]:
    """Return the blocks of Python."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [match[2] for match in _FENCE.finditer(text) if match[1] == "python"]


def _plain(line: str) -> str:
    return " ".join(re.split(r"\s+#(?:\s|$)", line)[0].removesuffix("&").split())
