"""Join token, from options and environment variables."""

from collections.abc import Mapping
from pathlib import Path

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import read_text, shown

MAX_TOKEN_CHARACTERS = 4096
"""Longest token: a server accepts 16 KiB of metadata per call, of which the token is one part."""


def find_token(option: str | None, option_file: Path | None, environment: Mapping[str, str]) -> str:
    """Return the token that the user gave; empty if there is none.

    Options take precedence over variables, and the token over its file. An empty variable counts as unset.

    Args:
        option: value of --token.
        option_file: value of --token-file.
        environment: variables, with HYPERGPU_TOKEN and HYPERGPU_TOKEN_FILE.

    Raises:
        ConfigError: both options are given, the file cannot be read, or its text is not a token.
    """
    if option is not None and option_file is not None:
        raise ConfigError("give either --token or --token-file")
    if option is not None:
        return check_token(option, "--token")
    if option_file is not None:
        return _in_file(option_file, "--token-file")
    if variable := environment.get("HYPERGPU_TOKEN"):
        return check_token(variable, "HYPERGPU_TOKEN")
    if variable := environment.get("HYPERGPU_TOKEN_FILE"):
        return _in_file(Path(variable), "HYPERGPU_TOKEN_FILE")
    return ""


def server_token(
    option: str | None, option_file: Path | None, environment: Mapping[str, str], *, optional: bool
) -> str:
    """Return the token that a server requires of its clients; empty only if it is `optional`.

    Raises:
        ConfigError: as `find_token`, or a token is needed and none is given.
    """
    token = find_token(option, option_file, environment)
    if not token and not optional:
        raise ConfigError(
            "a join token is needed: give --token-file FILE or set HYPERGPU_TOKEN, or --insecure on a trusted network"
        )
    return token


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


def _in_file(path: Path, source: str) -> str:
    # Twice the bound leaves room for white space.
    try:
        text = read_text(path, 2 * MAX_TOKEN_CHARACTERS)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return check_token(text, f"{source} {shown(path)}")
