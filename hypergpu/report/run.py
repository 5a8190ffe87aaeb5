"""Reader of run directories, of any version of HyperGPU and with any end of the run.

Neither sizes nor types are trusted. Unreadable parts are left out, with a note.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from hypergpu.common import strict_json
from hypergpu.common.config.document import load_yaml
from hypergpu.common.errors import ConfigError, InvalidInput
from hypergpu.common.metric import ACCURACY, MetricSpec, finite
from hypergpu.common.text import counted
from hypergpu.coordinator.core.decisions import Figures
from hypergpu.coordinator.core.rounds.traffic import Traffic
from hypergpu.report.model import Event, NodeRound, Round, Run

Json = Mapping[str, object]

ROUNDS, EVENTS, NODES, SUMMARY, CONFIG = "rounds.jsonl", "events.jsonl", "nodes.json", "summary.json", "config.yaml"
MAX_ROUNDS = 100_000
MAX_EVENTS = 200_000
"""Most recent lines that are read of a longer record."""
MAX_FILE_BYTES = 64 << 20
MAX_TEXT = 1_000
_OWN_FIELDS = frozenset({"seconds", "round", "kind", "text", "subject", "reason", "figures"})


def read_run(directory: Path) -> Run:
    """Return the run in `directory`.

    Raises:
        InvalidInput: the directory is none, or holds no run.
    """
    if not directory.is_dir():
        raise InvalidInput(f"{directory} is not a directory; give the directory of a run, which holds {EVENTS}")
    if not any((directory / name).is_file() for name in (ROUNDS, EVENTS, SUMMARY)):
        raise InvalidInput(f"{directory} holds no run: there is no {ROUNDS}, {EVENTS} or {SUMMARY} in it")
    reader = _Reader(directory)
    read = reader.whole(SUMMARY)
    summary: Json = read if isinstance(read, dict) else {}
    metric = reader.metric(summary)
    rounds = [closed for row in reader.lines(ROUNDS, MAX_ROUNDS) if (closed := _round(row, metric)) is not None]
    events = [event for row in reader.lines(EVENTS, MAX_EVENTS) if (event := _event(row)) is not None]
    config_text = reader.text(CONFIG)
    events += _network_events(summary, events)
    rounds = sorted({closed.number: closed for closed in rounds}.values(), key=lambda closed: closed.number)
    origin = _origin(rounds, events)
    return Run(
        name=directory.resolve().name,
        summary=summary,
        metric=metric,
        rounds=tuple(replace(closed, ended_at=closed.ended_at - origin) for closed in rounds),
        events=tuple(replace(each, at=each.at - origin) for each in sorted(events, key=lambda each: each.at)),
        nodes=_nodes(reader.whole(NODES), summary.get("nodes")),
        config=reader.config(config_text),
        config_text=config_text,
        notes=tuple(reader.notes),
    )


class _Reader:
    """Files of one run, and notes about problems with them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.notes: list[str] = []

    def lines(self, name: str, most: int) -> Iterator[Json]:
        """Return the last `most` objects of a file of JSON lines; a line that is cut short or no object is left out."""
        file = self._directory / name
        if not file.is_file():
            self.notes.append(f"{name} is missing.")
            return
        kept: deque[Json] = deque(maxlen=most)
        invalid: list[int] = []
        read = 0
        try:
            for row in strict_json.read_lines(file, on_invalid=invalid.append):
                kept.append(row)
                read += 1
        except ConfigError as error:
            self.notes.append(f"{name} could not be read: {error}.")
        if invalid:
            self.notes.append(f"Lines of {name} that could not be read and are left out: {len(invalid)}.")
        if read > most:
            self.notes.append(f"{name} holds {counted(read, 'record')}; the last {most:,} are shown.")
        yield from kept

    def whole(self, name: str) -> object:
        """Return the value of a JSON file; None if there is none."""
        text = self.text(name)
        if not text:
            return None
        try:
            return strict_json.parse(text)
        except ValueError:
            self.notes.append(f"{name} is not valid JSON and is left out.")
            return None

    def text(self, name: str) -> str:
        """Return a small file as text; empty if there is none."""
        file = self._directory / name
        try:
            if not file.is_file():
                return ""
            if file.stat().st_size > MAX_FILE_BYTES:
                self.notes.append(f"{name} is larger than {MAX_FILE_BYTES >> 20} MiB and is left out.")
                return ""
            return file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.notes.append(f"{name} could not be read: {error.strerror}.")
            return ""

    def metric(self, summary: Json) -> MetricSpec:
        """Return the metric of the run; accuracy if none is recorded."""
        try:
            return MetricSpec.model_validate(summary.get("metric", {"name": ACCURACY.name, "format": ACCURACY.format}))
        except ValidationError:
            self.notes.append(f"The metric in {SUMMARY} is not valid; accuracy is taken instead.")
            return ACCURACY

    def config(self, text: str) -> Json:
        """Return the configuration; empty if it does not parse."""
        try:
            config = load_yaml(text) if text else {}
        except (yaml.YAMLError, RecursionError):
            self.notes.append(f"{CONFIG} is not valid YAML.")
            config = {}
        return config if isinstance(config, dict) else {}


def _round(row: Json, metric: MetricSpec) -> Round | None:
    number, seconds = finite(row.get("round")), finite(row.get("seconds"))
    ended_at = finite(row.get("ended_seconds"))
    if number is None or seconds is None or ended_at is None:
        return None
    return Round(
        number=int(number),
        ended_at=ended_at,
        seconds=max(seconds, 0.0),
        reason=_word(row.get("reason")),
        loss=finite(row.get("loss")),
        metric=finite(row.get(metric.name)),
        others=_numbers(row.get("metrics")),
        train_loss=finite(row.get("train_loss")),
        samples=finite(row.get("samples")),
        nodes=tuple(_node_rounds(row)),
        traffic=_traffic(row),
    )


def _node_rounds(row: Json) -> Iterator[NodeRound]:
    keys = ("batch_sizes", "compute_seconds", "waiting_seconds", "upload_seconds")
    codecs = [_figures(row.get(key)) for key in ("codec", "parameters_codec")]
    noise = _figures(row.get("noise"))
    columns = [_figures(row.get(key)) for key in keys]
    for names, success in ((_names(row.get("contributors")), True), (_names(row.get("missing")), False)):
        for name in names:
            used = "/".join(_word(codec[name]) for codec in codecs if name in codec)
            figures = (finite(column.get(name)) for column in columns)
            yield NodeRound(name, success, *figures, noise=finite(noise.get(name)), codecs=used)


def _traffic(row: Json) -> dict[str, Traffic]:
    down, up = _figures(row.get("bytes_down")), _figures(row.get("bytes_up"))
    names = dict.fromkeys([*down, *up])
    return {name: Traffic(_count(down.get(name)), _count(up.get(name))) for name in names}


def _count(value: object) -> int:
    """Return a count of bytes; 0 for anything that is none."""
    return max(int(finite(value) or 0), 0)


def _event(row: Json) -> Event | None:
    at = finite(row.get("seconds"))
    if at is None:
        return None
    kind, text = _word(row.get("kind")), _word(row.get("text"))
    is_decision = kind == "decision"
    if is_decision:
        kind = text.partition(" ")[
            0
        ]  # the record's own `kind` says only that it is a decision; its text begins with the decision's
    others = {key: value for key, value in row.items() if key not in _OWN_FIELDS}
    return Event(
        at=at,
        round=int(finite(row.get("round")) or 0),
        kind=kind,
        text=text,
        is_decision=is_decision,
        subject=_word(row.get("subject", row.get("node", ""))),
        reason=_word(row.get("reason", "")),
        figures=_figures(row.get("figures") if is_decision else others),
    )


def _origin(rounds: Sequence[Round], events: Sequence[Event]) -> float:
    """Return the start of the first round, or of the record if there is no round."""
    begun = [event.at for event in events if event.kind == "round_started"][:1]
    begun += [closed.ended_at - closed.seconds for closed in rounds[:1]]
    return min(begun, default=min((event.at for event in events), default=0.0))


def _network_events(summary: Json, events: Sequence[Event]) -> list[Event]:
    """Return the network changes of a demo, such as `round 10: latency spike …`, at the start of that round."""
    begun = {event.round: event.at for event in events if event.kind == "round_started"}
    found = []
    for text in _names(summary.get("network_events")):
        when, _, what = text.partition(": ")
        number = when.removeprefix("round ")
        if number.isdecimal() and int(number) in begun:
            found.append(Event(begun[int(number)], int(number), "network", what))
    return found


def _nodes(*sources: object) -> tuple[Figures, ...]:
    """Return the nodes by id, what later sources say added to the earlier; a source is a list or an object of rows."""
    nodes: dict[str, dict[str, float | int | str]] = {}
    for source in sources:
        rows = source.values() if isinstance(source, dict) else source if isinstance(source, list) else ()
        for row in rows:
            if isinstance(row, dict) and isinstance(row.get("node_id"), str):
                nodes.setdefault(_word(row["node_id"]), {}).update(_figures(row))
    return tuple({**figures, "node_id": name} for name, figures in nodes.items())


def _numbers(value: object) -> dict[str, float]:
    """Return the finite numbers of an object."""
    found = {key: finite(each) for key, each in value.items()} if isinstance(value, dict) else {}
    return {str(key): each for key, each in found.items() if each is not None}


def _figures(value: object) -> Figures:
    """Return the entries of an object that can be shown."""
    if not isinstance(value, dict):
        return {}
    shown: dict[str, float | int | str] = {}
    for key, each in value.items():
        number = finite(each)
        if number is not None:
            shown[str(key)] = int(number) if number.is_integer() else number
        elif isinstance(each, str):
            shown[str(key)] = _word(each)
    return shown


def _names(value: object) -> list[str]:
    return [_word(each) for each in value] if isinstance(value, list) else []


def _word(value: object) -> str:
    return "" if value is None else str(value)[:MAX_TEXT]
