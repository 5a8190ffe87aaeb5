"""Lines of CSV files that users write."""

import csv

from hypergpu.common.errors import ConfigError


def cells_of(line: str, where: str) -> list[str]:
    """Return the cells of a line, without the white space around them.

    Raises:
        ConfigError: a cell is too long; the message begins with `where`.
    """
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise ConfigError(f"{where}: not a line of CSV: {error}") from error
