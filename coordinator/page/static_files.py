"""Static files of the page. They come with the package, hold nothing of a run, and load nothing from elsewhere.

They are kept as they are read by people, and sent without the indentation and comments; lines keep their numbers.
"""

from importlib.resources import files
from typing import Final

from hypergpu.common.http import Answer, Routes, fixed

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every file: nothing but these files runs, and no other site may frame or read them."""


def static_routes() -> Routes:
    """Return a route for each file, and the page itself at `/`."""
    found = {}
    for file in files("hypergpu.coordinator.page").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = fixed(Answer(as_sent(file.name, file.read_bytes()), kind, headers=HEADERS))
    return dict(sorted(found.items()))


def as_sent(name: str, data: bytes) -> bytes:
    """Return a file without its indentation, and without lines that are all comment; others' files stay as they are."""
    if name.startswith("uPlot") or not name.endswith((".js", ".css")):
        return data
    lines, in_comment = [], False
    for line in map(bytes.strip, data.split(b"\n")):
        in_comment = in_comment or line.startswith(b"/*")
        lines.append(b"" if in_comment or line.startswith(b"//") else line)
        in_comment = in_comment and not line.endswith(b"*/")
    return b"\n".join(lines)
