"""Rewards of an epoch: scores of a run become shares of an amount, and a Merkle tree that a contract can check."""
