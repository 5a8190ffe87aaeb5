"""How much a proxy keeps at most, whoever asks: its files and its control API obey the same bounds."""

from typing import Final

MAX_LINKS: Final = 10_000
"""Nodes whose ids come beyond these share the default link: a client that invents ids must not fill the memory."""
MAX_EVENTS: Final = 10_000
"""Events that are planned or running."""
MAX_TARGETS: Final = 200_000
"""Names of links in all of those events together: one event may name many."""
