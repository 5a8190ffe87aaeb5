"""Texts that tests compare with what happens, and can write anew."""

from collections.abc import Callable, Iterable
from pathlib import Path

RequireTranscript = Callable[[Path, Iterable[str]], None]
"""Type of the fixture `require_transcript`."""
