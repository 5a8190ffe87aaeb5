"""`hypergpu` and `python -m hypergpu`: one of the three services, or a command of the command line."""

import os
import sys
from importlib import import_module

from hypergpu.common.orphans import die_with_parent

SERVICES = {
    "coordinator": "hypergpu.coordinator.__main__",
    "node": "hypergpu.node.__main__",
    "proxy": "hypergpu.netsim_proxy.__main__",
}


def main() -> None:
    """Run the service or command named by the first argument; exit with its code, or with 2 after bad input."""
    die_with_parent(os.environ)
    # A service does not load the other commands: a demo starts seven of them on a few cores.
    if sys.argv[1:2] and sys.argv[1] in SERVICES:
        import_module(SERVICES[sys.argv[1]]).main(sys.argv[2:])
    else:
        import_module("hypergpu.cli").main()


if __name__ == "__main__":
    main()
