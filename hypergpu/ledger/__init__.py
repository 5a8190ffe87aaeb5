"""Offline checks of the ledger of a run; see docs/ledger.md."""
