"""The report as one self-contained HTML page, with style, script and charts inside."""

import base64
import hashlib
from importlib.resources import files

from hypergpu.common.text import counted, duration, figure, natural_key
from hypergpu.report.against import Against
from hypergpu.report.charts.lines import empty
from hypergpu.report.charts_section import learning, round_time, timeline
from hypergpu.report.headline import Measure, measures, target_sentence
from hypergpu.report.markup import Markup, tag
from hypergpu.report.model import Run
from hypergpu.report.node_time import node_times
from hypergpu.report.table import chosen, event_table
from hypergpu.report.timeline_data import words

MOST_NODES = 500
_SECTIONS = ("learning", "timeline", "time", "decisions", "nodes", "settings")
_UNSHOWN = ("address", "peer", "incarnation", "numerics")


def page(run: Run, against: Against | None = None) -> str:
    """Return the HTML document."""
    rows = chosen(run.events)
    parts = [
        _header(run, against),
        _headline(run, against),
        _section("learning", "Learning", learning(run, against.others() if against is not None else ())),
        _section("timeline", "What happened", timeline(run, rows)),
        _section("time", "Where the time went", tag("div", round_time(run), node_times(run))),
        _section("decisions", "Decisions and events", event_table(run, rows)),
        _section("nodes", "Nodes at the end", _nodes(run)),
        _section("settings", "Settings", _settings(run)),
    ]
    return _document(f"HyperGPU: {run.name}", tag("main", *parts))


def _document(title: str, body: Markup) -> str:
    """Return a content security policy that allows nothing but this style and this script."""
    style, script = _asset("style.css"), _asset("script.js")
    allowed = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=f"{allowed}; form-action 'none'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    tooltip = tag("div", id="tooltip", role="tooltip", hidden=True)
    return (
        f"<!doctype html>\n{tag('html', head, tag('body', body, tooltip, tag('script', Markup(script))), lang='en')}\n"
    )


def _asset(name: str) -> str:
    return files("hypergpu.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(name: str, title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content, id=name)


def _header(run: Run, against: Against | None) -> Markup:
    summary = run.summary
    facts = {
        "scenario": summary.get("scenario"),
        "clock": "simulated" if run.is_simulated else None,
        "task": summary.get("task", run.setting("training", "task")),
        "policy": run.policy or None,
        "nodes": len(run.node_ids) or None,
        "seed": summary.get("seed", run.setting("training", "seed")),
        "baseline": _baseline_name(against.baseline) if against is not None else None,
    }
    chips = [tag("li", tag("span", name), tag("b", str(value))) for name, value in facts.items() if value is not None]
    state = tag("span", run.state, class_=f"state {'good' if run.state == 'completed' else 'bad'}")
    notes = tag("ul", *(tag("li", note) for note in run.notes), class_="notes") if run.notes else None
    return tag(
        "header",
        tag("p", "HyperGPU run report", class_="kicker"),
        tag("h1", run.name, " ", state),
        tag("p", _opening(run), class_="lead"),
        tag("ul", *chips, class_="facts"),
        notes,
        tag("nav", *(tag("a", name.capitalize(), href=f"#{name}") for name in _SECTIONS), aria_label="Sections"),
    )


def _baseline_name(baseline: Run) -> str:
    return f"{baseline.name} (simulated)" if baseline.is_simulated else baseline.name


def _opening(run: Run) -> str:
    """Return a sentence about the run."""
    if not run.rounds:
        lasted = run.summary.get("duration_seconds")
        seconds = duration(lasted if isinstance(lasted, float) else run.ended_at)
        return f"No round was finished in {seconds}.{_why_stopped(run)}"
    done, planned, nodes = len(run.rounds), run.rounds_planned, len(run.node_ids)
    rounds = f"{done} of {counted(planned, 'round')}" if planned else counted(done, "round")
    _, metric = run.final
    reached = f", ending at {run.metric.label(metric)}" if metric is not None else ""
    decisions = sum(event.is_decision for event in run.events)
    where = f"on {counted(nodes, 'node')} in {duration(run.ended_at)}"
    goal = target_sentence(run)
    told = f"{rounds} {where}{reached}; {decisions:,} decisions on record, each with its reason."
    return " ".join(part for part in (told, goal) if part) + _why_stopped(run)


def _why_stopped(run: Run) -> str:
    """Return why the run ended early, if that is recorded."""
    over = run.ending
    why = str(over.figures.get("detail", "")) if over is not None and over.kind == "stopped" else ""
    return f" {why[0].upper()}{why[1:]}." if why else ""


def _headline(run: Run, against: Against | None) -> Markup:
    like = against.baseline if against is not None and against.baseline.is_simulated == run.is_simulated else None
    tiles = []
    for measure in measures(run.metric):
        value = measure.of(run)
        if value is not None:
            beside = _beside(measure, value, measure.of(like)) if like is not None else None
            tiles.append(tag("div", tag("dt", measure.label), tag("dd", measure.show(value)), beside))
    figures = tag("dl", *tiles, class_="tiles")
    return figures if against is None else tag("div", against.verdict(run), figures, against.table())


def _beside(measure: Measure, value: float, before: float | None) -> Markup | None:
    if before is None:
        return None
    better = (value - before) * measure.better
    word = "" if not better else ", better" if better > 0 else ", worse"
    style = "" if not better else " up" if better > 0 else " down"
    return tag("dd", f"baseline {measure.show(before)}{word}", class_=f"against{style}")


def _nodes(run: Run) -> Markup:
    nodes = sorted(run.nodes, key=lambda node: natural_key(str(node["node_id"])))[:MOST_NODES]
    if not nodes:
        return empty("The nodes are not on record.")
    said = dict.fromkeys(name for node in nodes for name, value in node.items() if value != "" and name not in _UNSHOWN)
    names = ["node_id", *(name for name in said if name != "node_id")]
    numeric = {name for name in names if all(isinstance(node.get(name, 0), int | float) for node in nodes)}

    def cell(element: str, name: str, content: str, **more: str) -> Markup:
        return tag(element, content, class_="number" if name in numeric else None, **more)

    head = [cell("th", name, words(name).removesuffix(" id"), scope="col") for name in names]
    body = [tag("tr", *(cell("td", name, _shown(node.get(name))) for name in names)) for node in nodes]
    few = len(run.nodes) > len(nodes)
    more = tag("p", f"The first {len(nodes)} of {len(run.nodes):,}.", class_="hint") if few else None
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="sortable")
    return tag("div", more, tag("div", table, class_="scroll tall card", tabindex=0, role="region", aria_label="Nodes"))


def _shown(value: float | int | str | None) -> str:
    return "" if value is None else figure(value) if isinstance(value, int | float) else value


def _settings(run: Run) -> Markup:
    if not run.config_text:
        return empty("The configuration is not on record.")
    title = tag("summary", "The whole configuration, as config.yaml has it")
    return tag("details", title, tag("pre", tag("code", run.config_text)))
