"""`hypergpu` and `python -m hypergpu`: one of the three services, or a command of the command line."""

import sys
from importlib import import_module

SERVICES = {
    "coordinator": "hypergpu.coordinator.__main__",
    "node": "hypergpu.node.__main__",
    "proxy": "hypergpu.netsim_proxy.__main__",
}


def main() -> None:
    """Run what the first argument names; exits with 0, with 2 after bad input, or with what a command says."""
    # A service does not load the other commands: a demo starts seven of them on a few cores.
    if sys.argv[1:2] and sys.argv[1] in SERVICES:
        import_module(SERVICES[sys.argv[1]]).main(sys.argv[2:])
    else:
        import_module("hypergpu.cli").main()


if __name__ == "__main__":
    main()
