"""Fixtures of the coordinator's tests."""

from tests.validated_rounds import validated_rounds

__all__ = ["validated_rounds"]
