"""Baseline of a report, and its comparison with the run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypergpu.report.headline import compare, figures, measures
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import Run
from hypergpu.time_to_target import TimeComparison

WITH, WITHOUT = "simulated, with adaptation", "simulated, without"
"""Labels of the two simulated runs."""
_ONE_PAIR = "A single pair of runs is not significant: "


@dataclass(frozen=True, slots=True)
class Against:
    """A baseline. If it was simulated and the run was real, `twin` is the run repeated in virtual time.

    Real and virtual times are not comparable: with a twin, the two simulated runs are compared.
    """

    baseline: Run
    twin: Run | None = None

    def comparison_of(self, run: Run) -> TimeComparison:
        """Return the comparison of the run, or of its twin, with the baseline."""
        if self.twin is not None:
            names = (f"the run with adaptation ({self.twin.policy})", "the run without")
            return compare(self.twin, self.baseline, names)
        if run.is_simulated != self.baseline.is_simulated:
            clocks = {True: "simulated", False: "real"}
            names = (
                f"this run ({clocks[run.is_simulated]} time)",
                f"the baseline ({clocks[self.baseline.is_simulated]} time)",
            )
            return compare(run, self.baseline, names)
        return compare(run, self.baseline)

    def others(self) -> Sequence[tuple[str, str, Run]]:
        """Return the runs to draw beside the run: label, style, run."""
        if self.twin is not None:
            return ((WITH, "twin", self.twin), (WITHOUT, "theirs", self.baseline))
        return (("baseline (simulated)" if self.baseline.is_simulated else "baseline", "theirs", self.baseline),)

    def sentence(self, run: Run) -> str:
        """Return the result of the comparison as a sentence, for the page and the terminal."""
        told = self.comparison_of(run).sentence
        return told if self.twin is None else f"In simulation: {told[0].lower()}{told[1:]}"

    def verdict(self, run: Run) -> Markup:
        """Return the result of the comparison, with its limits."""
        mixed = self.twin is None and run.is_simulated != self.baseline.is_simulated
        if self.twin is not None:
            caution = (
                "Both times are virtual: this run repeated with its policy and with the fixed baseline, on the same"
                " links, events, data and seed, with the measured compute times. "
            )
        elif mixed:
            caution = "One run was simulated and the other was not: their times are not exactly comparable. "
        else:
            caution = ""
        hint = tag("p", caution, _ONE_PAIR, tag("code", "hypergpu compare"), " repeats it over seeds.", class_="hint")
        return tag("div", tag("p", self.sentence(run), class_="verdict"), hint)

    def to_dict(self) -> dict[str, Any]:
        """Return the headline figures of the baseline as a JSON object."""
        twin = None if self.twin is None else {"run": self.twin.name, **figures(self.twin)}
        simulated = self.baseline.is_simulated
        return {"run": self.baseline.name, "simulated": simulated, **figures(self.baseline), "run_simulated": twin}

    def table(self) -> Markup | None:
        """Return the figures of the two simulated runs side by side; None if there is no twin."""
        if self.twin is None:
            return None
        rows = []
        for measure in measures(self.baseline.metric):
            pair = measure.of(self.twin), measure.of(self.baseline)
            if None not in pair:
                cells = (tag("td", measure.show(value), class_="number") for value in pair)
                rows.append(tag("tr", tag("td", measure.label), *cells))
        head = tag("tr", tag("th", ""), *(tag("th", name, scope="col", class_="number") for name in (WITH, WITHOUT)))
        table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll card")
        return tag("details", tag("summary", "Figures of the two simulated runs"), table)
