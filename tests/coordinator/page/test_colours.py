"""Colours of the page: WCAG 2.2, success criteria 1.4.3 and 1.4.11."""

import re
from collections.abc import Iterator
from pathlib import Path

from hypergpu.coordinator.core.decisions import DecisionKind
from hypergpu.coordinator.page import static_files

CSS = Path(static_files.__file__).parent / "static" / "page.css"


def colours_of(css: str) -> Iterator[dict[str, str]]:
    """The colours of the light and of the dark page."""
    light, dark = re.findall(r":root \{(.+?)\}", css, re.DOTALL)
    first = dict(re.findall(r"--([\w-]+): (#\w{6})", light))
    yield first
    yield first | dict(re.findall(r"--([\w-]+): (#\w{6})", dark))


def drawn_alone() -> set[str]:
    """Colours of lines and marks that have no edge around them."""
    lanes, charts = ((CSS.parent / name).read_text() for name in ("lanes.js", "charts.js"))
    marks, lines = re.search(r"COLOUR_OF = (\{.+?\})", lanes), re.search(r"stroke = \[(.+?)\]", charts)
    assert marks is not None and lines is not None
    return {"accent", "ghost", *re.findall(r': "([\w-]+)"', marks[1]), *re.findall(r"colours\.(\w+)", lines[1])}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_aa() -> None:
    for colours in colours_of(CSS.read_text()):

        def ratio(one: str, other: str, of: dict[str, str] = colours) -> float:
            light, dark = sorted((luminance(of[one]), luminance(of[other])), reverse=True)
            return (light + 0.05) / (dark + 0.05)

        for ground in ("page", "card"):
            for ink in ("ink", "soft", "accent", "ok", "bad"):
                assert ratio(ink, ground) >= 4.5, (ink, ground)
            for line in ("edge", "offline", *drawn_alone()):
                assert ratio(line, ground) >= 3.0, (line, ground)
        for ground in ("band", "band-2"):
            assert ratio("ink", ground) >= 4.5
        assert ratio("page", "accent") >= 4.5  # a pressed button


def test_each_decision_has_a_lane() -> None:
    lanes = (CSS.parent / "lanes.js").read_text()
    categories = re.search(r"CATEGORIES = \{(.+?)\n\};", lanes, re.DOTALL)
    assert categories is not None
    known = re.findall(r'"(\w+)"', categories[1])
    assert set(DecisionKind) <= set(known)
    assert len(known) == len(set(known))
