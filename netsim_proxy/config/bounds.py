"""Limits of a proxy's links, events and profiles, for its files and its control API alike."""

from typing import Final

MAX_LINKS: Final = 10_000
"""Largest number of links. Further nodes share the default link, so that invented ids cannot fill the memory."""
MAX_EVENTS: Final = 10_000
"""Largest number of scheduled and active events."""
MAX_TARGETS: Final = 200_000
"""Largest number of link names in all of those events together."""
