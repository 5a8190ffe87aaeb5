"""How many examples a property is tried with."""

from hypothesis import settings

_USUAL = 100
_SOAK = 1000

# A wall-clock deadline for one example tells how busy the machine is, not whether the code is right. The examples of
# `make test` are the same each time, so that it fails only where something was changed; `make soak` looks for new ones.
settings.register_profile("tests", deadline=None, max_examples=_USUAL, derandomize=True)
settings.register_profile("soak", deadline=None, max_examples=_SOAK)


def examples(count: int) -> settings:
    """Settings for `count` examples, or ten times as many under the profile `soak`."""
    return settings(max_examples=count * settings().max_examples // _USUAL)
