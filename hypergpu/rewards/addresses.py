"""Addresses of nodes: a CSV file, checked before anybody is paid by it."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.files import read_text, shown
from hypergpu.rewards.keccak import keccak256

HEADER: Final = ["node", "address"]
MOST_ROWS: Final = 100_000
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)


def checksummed(address: str) -> str:
    """Return an address with the capitals of EIP-55.

    Raises:
        InvalidInput: It is no address, is the zero address, or its capitals are those of another address.
    """
    if not _ADDRESS.fullmatch(address):
        raise InvalidInput(f"{address[:60]!r} is no address; expected 0x and 40 hexadecimal digits")
    digits = address[2:].lower()
    if not int(digits, 16):
        raise InvalidInput("the zero address cannot claim anything; give the address of a wallet")
    capitals = keccak256(digits.encode("ascii")).hex()
    right = "0x" + "".join(
        digit.upper() if int(capital, 16) >= 8 else digit for digit, capital in zip(digits, capitals, strict=False)
    )
    if address[2:] not in (digits, digits.upper()) and address != right:
        raise InvalidInput(f"{address} has a typing error: its capitals do not fit (EIP-55); copy it again")
    return right


def read_addresses(file: Path) -> Mapping[str, str]:
    """Return the address of each node in a CSV file with the header `node,address`; empty for one that takes no share.

    Raises:
        ConfigError: The file cannot be read, or a line is wrong; the message names it.
    """
    rows = csv.reader(io.StringIO(read_text(file)), strict=True)
    found: dict[str, str] = {}
    try:
        if [each.strip() for each in next(rows, [])] != HEADER:
            raise InvalidInput(f"the first line has to be {','.join(HEADER)}")
        for row in rows:
            if not row:
                continue
            if len(row) != len(HEADER):
                raise InvalidInput(f"{len(row)} fields where a node and its address belong")
            node, address = (each.strip() for each in row)
            if not node or node in found:
                raise InvalidInput(f"node {node[:60]!r} is there twice" if node else "the name of the node is missing")
            if len(found) >= MOST_ROWS:
                raise InvalidInput(f"more than {MOST_ROWS:,} nodes")
            found[node] = checksummed(address) if address else ""
    except (csv.Error, InvalidInput) as error:
        raise ConfigError(f"{shown(file)}, line {max(rows.line_num, 1)}: {error}") from error
    return found
