"""Picture of the phases of a round, drawn from the table of transitions.

`python -m tools.site.rounds` writes it into docs/rounds.md.
"""

from pathlib import Path

from hypergpu.coordinator.core.rounds.state import TRANSITIONS, Phase

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rounds.md"
BEGIN = "<!-- begin: python -m tools.site.rounds -->\n"
END = "<!-- end -->"
_EVENTS_PER_LINE = 3


def diagram() -> str:
    """Return the phases and the events that lead from one to another, as a Mermaid state diagram."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), afters in TRANSITIONS.items():
        for after in afters:
            if after is not phase:
                arrows.setdefault((phase, after), []).append(event.__name__)
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.IDLE}"]
    lines += [f"    {before} --> {after}: {_wrapped(events)}" for (before, after), events in arrows.items()]
    return "\n".join(["```mermaid", *lines, f"    {Phase.OVER} --> [*]", "```", ""])


def _wrapped(events: list[str]) -> str:
    rows = [", ".join(events[at : at + _EVENTS_PER_LINE]) for at in range(0, len(events), _EVENTS_PER_LINE)]
    return ",<br>".join(rows)


def with_diagram(page: str) -> str:
    """Return the page with the present diagram between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{diagram()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_diagram(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
