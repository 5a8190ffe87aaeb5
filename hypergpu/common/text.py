"""Foreign text made harmless: what a terminal would obey is shown instead."""

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, keep: str = "") -> str:
    """Return `text` with every character that does not print as itself written as an escape; those in `keep` stay.

    Escape sequences, line ends and marks that reverse the direction of writing could move the cursor, recolour the
    screen or forge lines where a name or a reason of somebody else is shown.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line, runs of white space as one space."""
    return printable(" ".join(text.split()))


def _escape(char: str) -> str:
    code = ord(char)
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
