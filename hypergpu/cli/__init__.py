"""The `hypergpu` command."""

from hypergpu.cli.app import main

__all__ = ["main"]
