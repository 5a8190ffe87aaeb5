"""`hypergpu token`: make a token, or replace one."""

import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from hypergpu.common.errors import ConfigError, StorageError
from hypergpu.common.files import shown
from hypergpu.common.options import FLAG
from hypergpu.common.private_files import create_private
from hypergpu.common.token import MAX_TOKENS, token_file
from hypergpu.console import say

_TOKEN_BYTES: Final = 32


def token(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Write it here, for its user alone.")] = None,
    rotate: Annotated[
        bool,
        typer.Option("--rotate", metavar=FLAG, help="Put the new token before those of the file, which stay valid."),
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", metavar=FLAG, help="Keep only the newest token of the file, and make none.")
    ] = False,
) -> None:
    """Make a random token of 256 bits: a join token, an operator's or a viewer's.

    Servers read a token file again when it changes. To replace a token, run `--rotate`, copy the file to its users, and
    then run `--drop-old`.

    Example: hypergpu token join-token
    """
    made = secrets.token_urlsafe(_TOKEN_BYTES)
    if file is None:
        if rotate or drop_old:
            raise ConfigError("give the file whose tokens change")
        say(made)
    elif drop_old and not rotate:
        (newest, *old) = token_file(file, "FILE").all
        _replace(file, [newest])
        say(f"{shown(file)}: {len(old)} older dropped")
    elif rotate and not drop_old:
        _replace(file, [made, *token_file(file, "FILE").all][:MAX_TOKENS])
        say(f"{shown(file)}: a new token is the first; the others stay valid until --drop-old")
    elif rotate:
        raise ConfigError("give --rotate first, and --drop-old when all users have the new token")
    else:
        _create(file, [made])
        say(f"{shown(file)}: a new token")


def _create(file: Path, tokens: list[str]) -> None:
    try:
        create_private(file, "".join(f"{each}\n" for each in tokens).encode())
    except FileExistsError:
        raise ConfigError(f"{shown(file)} exists: give --rotate to replace its token") from None
    except OSError as error:
        raise StorageError(f"cannot write {shown(file)}: {error.strerror}") from error


def _replace(file: Path, tokens: list[str]) -> None:
    """Replace a file at once: a server that reads it finds all tokens or those before."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    _create(partial, tokens)
    try:
        partial.chmod(file.stat().st_mode & 0o777)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {shown(file)}: {error.strerror}") from error
