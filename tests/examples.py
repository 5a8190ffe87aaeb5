"""How many examples a property is tried with."""

from hypothesis import settings

_USUAL = 100
_SOAK = 1000

# A wall-clock deadline for one example tells how busy the machine is, not whether the code is right.
settings.register_profile("tests", deadline=None, max_examples=_USUAL)
settings.register_profile("soak", deadline=None, max_examples=_SOAK)


def examples(count: int) -> settings:
    """Settings for `count` examples, or ten times as many under the profile `soak`."""
    return settings(max_examples=count * settings().max_examples // _USUAL)
