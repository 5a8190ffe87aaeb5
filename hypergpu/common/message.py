"""Decorator for the dataclasses of events and effects."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

Message = TypeVar("Message")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def message(cls: type[Message]) -> type[Message]:
    """Make an immutable dataclass with slots.

    Type checkers enforce that it is immutable. Enforcing it at run time would double the cost of creating one.
    """
    return dataclass(slots=True)(cls)
