"""Tokens of callers, from options, environment variables and files that may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from hypergpu.common.clock import Clock, monotonic
from hypergpu.common.errors import ConfigError
from hypergpu.common.files import FileWatch, read_text, shown

MAX_TOKEN_CHARACTERS: Final = 4096
"""Longest token: a server accepts 16 KiB of metadata per call, of which the token is one part."""
MAX_TOKENS: Final = 8
"""Tokens in a file: the new one and those that it replaces."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TokenKind:
    """Kind of token, with the names under which a user gives one."""

    name: str
    option: str
    variable: str

    @property
    def article(self) -> str:
        """Indefinite article of the name."""
        return "an" if self.name[0] in "aeiou" else "a"


JOIN: Final = TokenKind("join token", "--token", "HYPERGPU_TOKEN")
OPERATOR: Final = TokenKind("operator token", "--operator-token", "HYPERGPU_OPERATOR_TOKEN")
VIEWER: Final = TokenKind("viewer token", "--viewer-token", "HYPERGPU_VIEWER_TOKEN")


class TokenSource:
    """The valid tokens of a kind: none, one, or the lines of a file, which is read again when it changes.

    A file with a fault keeps the tokens that it had, and the log says so.
    """

    def __init__(
        self, tokens: Sequence[str] = (), file: Path | None = None, source: str = "", clock: Clock = monotonic
    ) -> None:
        self._tokens, self._file, self._source = tuple(tokens), file, source
        self._watch = FileWatch(() if file is None else (file,), clock)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    @property
    def all(self) -> Sequence[str]:
        """Tokens that are valid now."""
        if self._file is not None and self._watch.have_changed():
            self._read(self._file)
        return self._tokens

    @property
    def first(self) -> str:
        """Token that a client shows; empty if there is none."""
        return next(iter(self.all), "")

    def _read(self, file: Path) -> None:
        try:
            self._tokens = _in_file(file, self._source)
        except ConfigError as error:
            log.warning("the tokens of a changed file cannot be used; the former ones stay valid", reason=str(error))
        else:
            log.info("tokens were read again", source=self._source, file=str(file), tokens=len(self._tokens))


def find_token(
    option: str | None, option_file: Path | None, environment: Mapping[str, str], kind: TokenKind = JOIN
) -> TokenSource:
    """Return the tokens that the user gave; false if there are none.

    Options take precedence over variables, and the token over its file. An empty variable counts as unset.

    Args:
        option: value of the option.
        option_file: value of the option for a file.
        environment: variables, as HYPERGPU_TOKEN and HYPERGPU_TOKEN_FILE.
        kind: kind of the token.

    Raises:
        ConfigError: both options are given, the file cannot be read, or its text is not a token.
    """
    if option is not None and option_file is not None:
        raise ConfigError(f"give either {kind.option} or {kind.option}-file")
    if option is not None:
        return TokenSource([check_token(option, kind.option)])
    if option_file is not None:
        return token_file(option_file, f"{kind.option}-file")
    if variable := environment.get(kind.variable):
        return TokenSource([check_token(variable, kind.variable)])
    if variable := environment.get(f"{kind.variable}_FILE"):
        return token_file(Path(variable), f"{kind.variable}_FILE")
    return TokenSource()


def shown_token(option: str | None, option_file: Path | None, environment: Mapping[str, str]) -> str:
    """Return the token that a user's command shows: the given one, or else the operator's, a viewer's or a node's.

    Raises:
        ConfigError: as `find_token`.
    """
    for kind in (OPERATOR, VIEWER, JOIN):
        given = find_token(option, option_file, environment, replace(kind, option=JOIN.option))
        if given:
            return given.first
    return ""


def token_file(path: Path, source: str) -> TokenSource:
    """Return the tokens of a file, one a line.

    Raises:
        ConfigError: it cannot be read, or holds no tokens; the message names `source`.
    """
    return TokenSource(_in_file(path, source), path if path.is_file() else None, source)


def server_token(
    option: str | None,
    option_file: Path | None,
    environment: Mapping[str, str],
    *,
    optional: bool,
    kind: TokenKind = JOIN,
) -> TokenSource:
    """Return the tokens that a server requires of its clients; none only if they are `optional`.

    Raises:
        ConfigError: as `find_token`, or a token is needed and none is given.
    """
    tokens = find_token(option, option_file, environment, kind)
    if not tokens and not optional:
        raise ConfigError(
            f"{kind.article} {kind.name} is needed: give {kind.option}-file FILE or set {kind.variable}, or --insecure "
            "on a trusted network"
        )
    return tokens


def check_token(text: str, source: str) -> str:
    """Return the token in `text` without the white space around it.

    Raises:
        ConfigError: the token is empty, too long, or not printable ASCII; the message names `source`, not the token.
    """
    token = text.strip()
    if not token:
        raise ConfigError(f"{source} holds no token")
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise ConfigError(f"{source}: the token is longer than {MAX_TOKEN_CHARACTERS} characters")
    for place, char in enumerate(token, 1):
        if not " " <= char <= "~":
            raise ConfigError(
                f"{source}: character {place} of the token, U+{ord(char):04X}, cannot be sent in a header: "
                "use printable ASCII characters"
            )
    return token


def _in_file(path: Path, source: str) -> tuple[str, ...]:
    # Twice the bound leaves room for white space.
    try:
        text = read_text(path, 2 * MAX_TOKENS * MAX_TOKEN_CHARACTERS)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    source = f"{source} {shown(path)}"
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > MAX_TOKENS:
        raise ConfigError(f"{source} holds {len(lines)} tokens, one a line: keep at most {MAX_TOKENS}")
    return tuple(check_token(line, source) for line in lines) or (check_token(text, source),)
