"""Operator token of a run whose user gave none: in its directory, for its user alone."""

import secrets
from pathlib import Path
from typing import Final

import structlog

from hypergpu.common.errors import ConfigError
from hypergpu.common.private_files import create_private
from hypergpu.common.token import TokenSource, token_file

OPERATOR_TOKEN: Final = "operator-token"
_TOKEN_BYTES: Final = 32

log = structlog.get_logger()


def own_token(directory: Path) -> TokenSource:
    """Return the operator token of a run directory, and make it where there is none.

    Raises:
        ConfigError: it cannot be read or written.
    """
    file = directory / OPERATOR_TOKEN
    try:
        directory.mkdir(parents=True, exist_ok=True)
        create_private(file, f"{secrets.token_urlsafe(_TOKEN_BYTES)}\n".encode())
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot write the operator token to {file}: {error.strerror}") from error
    log.info("the token to control this run is in a file; nodes do not need it", file=str(file))
    return token_file(file, "the operator token")
