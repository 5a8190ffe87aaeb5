"""The page in a real browser, over a run directory; what it shows is read from its document."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from hypergpu.common.http import Action, Answer, Chunks, Request, Stream
from hypergpu.common.roles import Role
from hypergpu.coordinator.page.feed import Feed
from tests.browser import Browser, needs_chromium
from tests.coordinator.page.conftest import NODES, TOKENS, Serve, lines, round_of
from tests.coordinator.page.conftest import events as events_of_run
from tests.patience import until

pytestmark = needs_chromium
SHOWN = "hypergpu.caughtUp && document.querySelector('#events tbody tr:not(.space)') !== null"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def leaves_without_an_error(browser: Browser, serve: Serve) -> Iterator[None]:
    del serve  # it ends after the page has left
    yield
    browser.call("Page.navigate", url="about:blank")
    errors, browser.errors = browser.errors, []
    # A page that outlives its server cannot reach it for a while.
    assert [error for error in errors if not ("net::ERR_" in error and error.endswith("/events"))] == []


def cells(browser: Browser, table: str) -> list[list[str]]:
    found: list[list[str]] = browser.value(
        f"[...document.querySelectorAll('#{table} tbody tr:not(.space):not([hidden])')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found


def text(browser: Browser, selector: str) -> str:
    return str(browser.value(f"document.querySelector({json.dumps(selector)}).textContent"))


def tree(browser: Browser) -> list[tuple[str, str]]:
    """Roles and names of what a screen reader is told."""
    nodes: list[dict[str, Any]] = browser.call("Accessibility.getFullAXTree")["nodes"]
    return [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each.get("ignored")]


def test_it_shows_the_run_and_follows_it(browser: Browser, run_dir: Path, serve: Serve) -> None:
    browser.show(f"http://{serve(run_dir, live=True, rounds=9, metric={'name': 'accuracy'}).address}/")
    browser.until(SHOWN)
    assert text(browser, "h1") == "first running"
    assert text(browser, "#progress-text") == "round 6 of 9 · warm up"
    assert (
        dict(
            zip(
                *[iter(browser.value("[...document.querySelectorAll('#tiles dt, #tiles dd')].map(e => e.textContent)"))]
                * 2,
                strict=True,
            )
        )["nodes"]
        == "2 of 3"
    )
    assert [row[0] for row in cells(browser, "nodes")] == [NODES[2], "far_1", "near_0"]
    assert cells(browser, "links")[1][:4] == ["far_1", "poor", "31", "213 ms"]
    with (run_dir / "rounds.jsonl").open("a") as file:
        file.write(lines([round_of(7, 7.9)]))
    browser.until("document.querySelector('#progress-text').textContent.startsWith('round 7 of 9')")


def test_a_name_that_would_be_markup_is_text(browser: Browser, run_dir: Path, serve: Serve) -> None:
    (run_dir / "summary.json").write_text(
        json.dumps({"metric": {"name": "<img src=x onerror=alert(1)>"}, "scenario": "<b>x</b>"})
    )
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    browser.value(f"hypergpu.showNode({json.dumps(NODES[2])})")
    assert text(browser, "#why h2") == NODES[2]
    assert "<b>x</b>" in text(browser, "#kicker")
    assert (
        browser.value("document.querySelectorAll('main script, main img, #why script, header b, #tiles img').length")
        == 0
    )


def test_going_back_shows_the_state_of_then(browser: Browser, run_dir: Path, serve: Serve) -> None:
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    now = cells(browser, "links")
    browser.value(
        "(() => { const t = document.querySelector('#time'); t.value = 2.95; t.dispatchEvent(new Event('input')); })()"
    )
    browser.until("document.querySelector('#progress-text').textContent.startsWith('round 2')")
    then = cells(browser, "links")
    assert {row[0]: row[1] for row in then} == {
        NODES[2]: "unclassified",
        "far_1": "unclassified",
        "near_0": "unclassified",
    }
    assert {row[0]: row[1] for row in now} == {NODES[2]: "offline", "far_1": "poor", "near_0": "good"}
    assert all("quality" not in row[0] for row in cells(browser, "events"))
    # The state of each moment is that of a reduction from the beginning: no copy on the way is of another moment.
    assert (
        browser.value(
            """(async () => {
          const { History } = await import('/page/history.js');
          const { apply, initial, record } = await import('/page/state.js');
          const of = (state) => JSON.stringify([state, [...state.nodes]]);
          const rows = Array.from({length: 3000}, (_, n) => record('event', {seconds: (n * 7919) % 3001, round: 1,
            kind: n % 5 ? 'decision' : 'node_joined', text: 'batch_size x',
            subject: 'node_' + n % 40, node: 'node_' + n % 40, figures: {to: n}}));
          const history = new History();
          for (let at = 0; at < rows.length; at += 37) history.add(rows.slice(at, at + 37));
          const sorted = rows.slice().sort((a, b) => a.t - b.t);
          for (const t of [-1, 0, 17, 399, 400, 401, 1200, 2999, 3001]) {
            const plain = initial();
            for (const row of sorted) if (row.t <= t) apply(plain, row);
            if (of(history.at(t)) !== of(plain)) return `another state at ${t}`;
          }
          return history.records.length;
        })()"""
        )
        == 3000
    )
    browser.value("document.querySelector('#follow').click()")
    browser.until("document.querySelector('#progress-text').textContent.startsWith('round 6')")
    assert cells(browser, "links") == now


def test_nodes_of_a_run_that_is_over_are_shown_as_they_were(browser: Browser, run_dir: Path, serve: Serve) -> None:
    over = [{"seconds": 8.0, "round": 6, "kind": "completed", "text": "run completed: rounds_done, 6 rounds"}]
    over += [
        {"seconds": 8.0, "round": 6, "kind": "node_left", "text": "left", "node": node, "reason": "completed"}
        for node in NODES[:2]
    ]
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(lines(over))
    browser.show(f"http://{serve(run_dir, live=True, policies=['none'], policy='none').address}/")
    browser.until(SHOWN)
    assert {row[0]: row[1] for row in cells(browser, "nodes")} == {
        NODES[2]: "lost",
        "far_1": "done",
        "near_0": "done",
    }
    assert {row[0]: row[1] for row in cells(browser, "links")} == {
        NODES[2]: "offline",
        "far_1": "poor",
        "near_0": "good",
    }
    assert text(browser, "#told") == "run completed: rounds done, 6 rounds"
    assert browser.value("document.querySelector('#steer').hidden")  # nothing is left to steer
    assert "near_0 joined" in [row[4] for row in cells(browser, "events")]  # a name stays as it is
    browser.value("hypergpu.showNode('near_0')")
    assert text(browser, "#why h2") == "near_0"
    assert (
        browser.value("getComputedStyle(document.querySelector('#why h2'), '::first-letter').textTransform") == "none"
    )


def test_a_change_is_explained_by_keyboard(browser: Browser, run_dir: Path, serve: Serve) -> None:
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    browser.value("document.querySelector('#lanes').focus()")
    browser.press("Home")
    marks = int(browser.value("hypergpu.lanes.marks.findIndex((mark) => mark.event.kind === 'batch_size')"))
    browser.press(*["ArrowRight"] * marks)
    assert "batch_size far_1" in text(browser, "#live")
    browser.press("Enter")
    said = text(browser, "#why")
    for part in (
        "Batch size of far_1"[1:],
        "64 → 96",
        "Fills idle time.",
        "goodput gain73.0 %",
        "What came of it",
        "its batch",
    ):
        assert part in said
    assert "rounds that it contributed to100 %75 %" in said  # it missed the fourth
    browser.press("Escape")
    assert browser.value("document.querySelector('#why').hidden && document.activeElement.id") == "lanes"


def test_tables_sort_by_keyboard_and_keep_few_rows(browser: Browser, run_dir: Path, serve: Serve) -> None:
    joined = [{"seconds": 0.01, "round": 1, "kind": "node_joined", "text": "", "node": f"n{n}"} for n in range(1000)]
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(lines(joined))
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    assert browser.value("document.querySelector('#nodes table').getAttribute('aria-rowcount')") == "1004"
    assert len(cells(browser, "nodes")) < 40
    head = "document.querySelector('#nodes th:nth-child(7)')"
    browser.value(f"{head}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.value(f"{head}.getAttribute('aria-sort')") == "descending"
    assert [row[6] for row in cells(browser, "nodes")][:4] == ["6", "6", "5", "0"]
    browser.value("document.querySelector('#nodes .scroll').scrollTop = 1e6")
    browser.until("[...document.querySelectorAll('#nodes tbody th')].some((cell) => cell.textContent === 'n999')")


def test_a_damaged_run_says_what_is_missing(browser: Browser, run_dir: Path, serve: Serve) -> None:
    (run_dir / "nodes.json").write_text('[{"node_id": "near_0"')
    (run_dir / "rounds.jsonl").write_text(
        '{"round": 1, "ended_seconds": 1.9, "batch_sizes": 7, "contributors": "x"}\nx\n[]\n{"round'
    )
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(
            '{"seconds": "later", "kind": 7}\n'
            '{"seconds": 8, "kind": "decision", "text": 5, "figures": [1], "subject": {}}\n'
        )
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    told = text(browser, "#notes")
    for part in (
        "nodes.json is not valid JSON and is left out.",
        "Lines of rounds.jsonl that could not be read and are left out: 2.",
        "The last line of rounds.jsonl is cut short and is left out.",
        "Lines of events.jsonl that could not be read and are left out: 1.",
    ):
        assert part in told
    assert text(browser, "h1") == "first unfinished"


@pytest.mark.parametrize("missing", ["events.jsonl", "rounds.jsonl", "nodes.json", "summary.json", "config.yaml"])
def test_a_run_without_one_of_its_files_shows_the_others(
    missing: str, browser: Browser, run_dir: Path, serve: Serve
) -> None:
    (run_dir / missing).unlink()
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until("hypergpu.caughtUp && !document.querySelector('#notes').hidden")
    browser.value("hypergpu.draw(true)")
    told = text(browser, "#notes")
    assert (f"{missing} is missing." in told) or (missing == "config.yaml" and "config.yaml cannot be used" in told)
    assert text(browser, "h1").startswith("first")
    assert [row[0] for row in cells(browser, "nodes")] == [NODES[2], "far_1", "near_0"]
    assert text(browser, "#progress-text").startswith("round 6")


def spoiled(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with some of its parts replaced by others of wrong types."""
    wrong: Sequence[Any] = (
        None,
        True,
        [],
        {},
        "x",
        "__proto__",
        -1,
        1e308,
        ["constructor"],
        {"__proto__": 5},
        "<img src=x>",
        2**70,
    )
    if chance.random() < 0.1:
        return chance.choice(wrong)
    if isinstance(value, dict):
        return {name: spoiled(part, chance) for name, part in value.items()}
    return [spoiled(part, chance) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(4))
def test_values_of_wrong_types_break_nothing(seed: int, browser: Browser, run_dir: Path, serve: Serve) -> None:
    chance = random.Random(seed)
    for name in ("events.jsonl", "rounds.jsonl"):
        rows = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        (run_dir / name).write_text(lines([*rows, *(spoiled(row, chance) for row in rows)]))
    for name in ("nodes.json", "summary.json"):
        found = json.loads((run_dir / name).read_text())
        (run_dir / name).write_text(json.dumps([spoiled(row, chance) for row in found] if name[0] == "n" else found))
    what_if = {
        "policy": "none",
        "ratio": {"mean": 1},
        "unknown": ["x"],
        "now": [round_of(7, 7.9)],
        "then": [round_of(7, 8.9)],
    }
    (run_dir / "what_if.json").write_text(json.dumps(spoiled(what_if, chance)))
    (run_dir / "config.yaml").write_text("training:\n  rounds: many\n  task: [1]\n")
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    assert [row[0] for row in cells(browser, "nodes") if row[0] in NODES] == [NODES[2], "far_1", "near_0"]
    assert browser.value("hypergpu.history.end") < 100  # no wrong time has stretched the axis
    browser.value(
        """(() => {
          const { history } = hypergpu, span = history.end - history.begin;
          for (const event of history.events) hypergpu.explain(event);
          for (const id of hypergpu.state.nodes.keys()) hypergpu.showNode(id);
          for (let n = 0; n <= 4; n += 1) hypergpu.goTo(history.begin + span * n / 4);
          for (const button of document.querySelectorAll('thead button')) button.click();
          for (const round of history.rounds) hypergpu.map.fly(round);
        })()"""
    )


def test_an_operator_steers_from_the_page(browser: Browser, run_dir: Path, serve: Serve) -> None:
    asked: list[tuple[str, str, object]] = []

    def act(request: Request) -> Answer:
        asked.append((request.path, request.headers.get("authorization", ""), json.loads(request.body)))
        return Answer(b"done\n")

    routes = {f"/control/{method}": Action(act) for method in ("Pause", "SetPolicy", "SetNodeRule", "WhatIf")}
    server = serve(run_dir, more=routes, live=True, policy="reactive", policies=["none", "reactive"])
    browser.show(f"http://{server.address}/")
    browser.until(SHOWN)
    browser.value("document.querySelector('#operator').value = ' secret '")
    browser.value("document.querySelector('#steer [data-call=Pause]').click()")
    browser.until("document.querySelector('#steered').textContent === 'Pause: done'")
    browser.value("document.querySelector('#policy').value = 'none'")
    browser.value("document.querySelector('#steer [data-call=SetPolicy]').click()")
    browser.until("document.querySelector('#steered').textContent === 'SetPolicy: done'")
    browser.value("hypergpu.goTo(3.95)")
    browser.value("document.querySelector('#steer [data-call=WhatIf]').click()")
    browser.until("document.querySelector('#steered').textContent === 'WhatIf: done'")
    browser.value(f"hypergpu.showNode({json.dumps(NODES[2])})")
    browser.value("document.querySelector('#why .rules button').click()")
    browser.until("document.querySelector('#steered').textContent === 'SetNodeRule: done'")
    assert asked == [
        ("/control/Pause", "Bearer secret", {}),
        ("/control/SetPolicy", "Bearer secret", {"policy": "none"}),
        ("/control/WhatIf", "Bearer secret", {"policy": "none", "round": 3}),
        ("/control/SetNodeRule", "Bearer secret", {"nodeId": NODES[2], "rule": "EXCLUDE"}),
    ]
    browser.show(f"http://{serve(run_dir).address}/")  # a run that has ended
    browser.until(SHOWN)
    assert browser.value("document.querySelector('#steer').hidden")


def test_a_page_that_lost_its_connection_goes_on_where_it_was(browser: Browser, run_dir: Path, serve: Serve) -> None:
    places: list[str] = []
    given = Feed(run_dir, lambda: {"name": "first", "live": True})

    async def cut(chunks: Chunks) -> Chunks:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
                if b"caught_up" in chunk and len(places) == 1:
                    return

    def events(request: Request) -> Chunks:
        places.append(request.headers.get("last-event-id", ""))
        return cut(given.open(request.address, places[-1]))

    server = serve(run_dir, more={"/events": Stream(events)})
    browser.show(f"http://{server.address}/")
    browser.until("hypergpu.connection[0] === 'connected' && hypergpu.history.rounds.length === 6")
    read = [(run_dir / name).stat().st_size for name in ("events.jsonl", "rounds.jsonl")]
    until(lambda: len(places) == 2, "it to come back")
    with (run_dir / "rounds.jsonl").open("a") as file:
        file.write(lines([round_of(7, 7.9)]))
    browser.until("hypergpu.history.rounds.length === 7")
    assert places[0] == ""
    assert places[1].endswith("".join(f".{size}" for size in read))
    assert browser.value("hypergpu.history.events.length") == len(events_of_run())


def test_a_page_outlives_its_coordinator(browser: Browser, run_dir: Path, serve: Serve) -> None:
    first = serve(run_dir, live=True)
    browser.show(f"http://{first.address}/")
    browser.until(SHOWN)
    first.close()
    browser.until("document.querySelector('#state').textContent === 'no connection'")
    assert "this page tries again" in text(browser, "#told")
    with (run_dir / "rounds.jsonl").open("a") as file:
        file.write(lines([round_of(7, 7.9)]))
    serve(run_dir, listen=first.address, live=True)
    browser.until("document.querySelector('#state').textContent === 'running' && hypergpu.history.rounds.length === 7")
    assert browser.value("hypergpu.history.events.length") == len(events_of_run())  # none twice


def test_a_what_if_is_drawn_as_dashed_lines(browser: Browser, run_dir: Path, serve: Serve) -> None:
    told = {
        "policy": "none",
        "round": 4,
        "ratio": {"mean": 2.0, "ci_low": 1.5, "ci_high": 2.5},
        "unknown": ["<b>x</b>"],
    }
    ways = {"now": [round_of(5, 5.9), round_of(6, 6.9)], "then": [round_of(5, 6.9), round_of(6, 9.9)]}
    (run_dir / "what_if.json").write_text(json.dumps(told | ways))
    browser.show(f"http://{serve(run_dir).address}/")
    browser.until(SHOWN)
    browser.until("hypergpu.charts.charts[0].plot?.series.length === 4")
    series = browser.value(
        "hypergpu.charts.charts[0].plot.series.slice(1).map(({label, dash}) => [label, Boolean(dash)])"
    )
    assert series == [["this run", False], ["if unchanged", True], ["if none", True]]
    xs, *lines_of = browser.value("[...hypergpu.charts.charts[0].plot.data.map((line) => [...line])]")
    drawn = {round(x, 6): value for x, value in zip(xs, lines_of[2], strict=True) if value is not None}
    assert drawn == pytest.approx({5.9: 0.5, 8.9: 0.6})  # on the clock of the run, whose first round began at 1 s
    assert browser.value("hypergpu.charts.charts[0].plot.scales.x.max") == pytest.approx(8.9)
    assert text(browser, "#what-if").startswith(
        "What if the policy were none after round 4? Rehearsed in virtual time, a round takes 2 (1.5 to 2.5) times as "
        "long."
    )
    assert text(browser, "#what-if li") == "<b>x</b>"
    cut = "[...document.querySelectorAll('.plot')].map((box) => box.firstChild.offsetHeight - box.clientHeight)"
    assert max(browser.value(cut)) <= 1  # each legend is in sight as a whole
    browser.value("document.querySelector('#what-if button').click()")
    browser.until("hypergpu.charts.charts[0].plot.series.length === 2")
    (run_dir / "what_if.json").write_text(json.dumps({"policy": "none", "fault": "it took longer than 120 s"}))
    browser.until("document.querySelector('#what-if').textContent.includes('No answer: it took longer than 120 s.')")


def test_a_token_is_asked_for_and_leaves_the_address(browser: Browser, run_dir: Path, serve: Serve) -> None:
    server = serve(run_dir, TOKENS)
    browser.show(f"http://{server.address}/")
    browser.until("!document.querySelector('#ask').hidden")
    assert "the token is missing or wrong" in text(browser, "#ask-why")
    assert browser.errors.pop().startswith("Failed to load resource: the server responded with a status of 401")
    browser.show(f"http://{server.address}/?again#token={TOKENS[Role.VIEWER]}")
    browser.until(SHOWN)
    assert browser.value("location.hash") == ""
    browser.call("Page.reload")
    browser.until(SHOWN)


@pytest.mark.parametrize("width", [360, 3840])
def test_it_fits_and_can_be_read_aloud(width: int, browser: Browser, run_dir: Path, serve: Serve) -> None:
    browser.show(f"http://{serve(run_dir).address}/", width=width)
    browser.until(SHOWN)
    assert browser.value("document.documentElement.scrollWidth") <= width
    # Neither a table nor a chart leaves its box empty, and text grows with a very large screen.
    spare = (
        "document.querySelector('#nodes .scroll').clientHeight - document.querySelector('#nodes table').offsetHeight"
    )
    assert browser.value(spare) <= 1
    empty = "[...document.querySelectorAll('.plot')].map((box) => box.clientHeight - box.firstChild.offsetHeight)"
    assert max(browser.value(empty)) <= 40 * (1.5 if width > 3000 else 1)
    assert browser.value("parseFloat(getComputedStyle(document.body).fontSize)") > (20 if width > 3000 else 14)
    found = tree(browser)
    named = {
        role
        for role, name in found
        if not name and role in {"button", "slider", "combobox", "searchbox", "table", "region", "image"}
    }
    assert named == set()
    assert ("slider", "Time of the run") in found
    assert ("columnheader", "round trip") in found
    assert any(role == "image" and name.startswith("Map of links. 3 nodes: ") for role, name in found)


def test_another_run_is_drawn_beside_it(browser: Browser, run_dir: Path, tmp_path: Path, serve: Serve) -> None:
    other = tmp_path / "fixed"
    other.mkdir()
    (other / "rounds.jsonl").write_text(lines([round_of(n, 100 + 2.0 * n) for n in range(1, 4)]))
    browser.show(f"http://{serve(run_dir, beside=other).address}/")
    browser.until(SHOWN)
    browser.until("hypergpu.charts.ghosts.length && hypergpu.charts.charts[0].plot.series.length === 3")
    xs, mine, theirs = browser.value("[...hypergpu.charts.charts[0].plot.data.map((line) => [...line])]")
    drawn = {round(x, 6): value for x, value in zip(xs, theirs, strict=True) if value is not None}
    assert drawn == pytest.approx({0.8: 0.1, 2.8: 0.2, 4.8: 0.3})  # from the beginning of its own first round
    assert sum(value is not None for value in mine) == 6
    assert text(browser, ".plot .u-legend").count("fixed") == 1
