"""The records of a run over HTTP: replay, what follows, resuming, faults, limits and tokens."""

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from hypergpu.common.clock import ManualClock
from hypergpu.common.http import HttpServer
from hypergpu.common.roles import Role
from hypergpu.common.strict_json import MAX_LINE_BYTES
from hypergpu.coordinator.page import feed, record_files, static_files
from hypergpu.coordinator.page.paced_files import PacedFiles
from tests.coordinator.page.conftest import TOKENS, Serve, lines, round_of


class Viewer:
    """What a viewer of a stream has received."""

    def __init__(self, reply: HTTPResponse) -> None:
        self.reply, self.place = reply, ""

    def next(self) -> tuple[str, str]:
        """The next event: its kind and data; places are taken note of."""
        found = {"event": "", "data": "", "id": ""}
        while (line := self.reply.readline().decode(errors="replace").rstrip("\n")) or not found["event"]:
            name, _, value = line.partition(": ")
            found[name.rstrip(":")] = value
        if found["event"] == "place":
            self.place = found["id"]
            return self.next()
        return found["event"], found["data"]

    def until(self, kind: str) -> list[tuple[str, str]]:
        """The events up to one of a kind."""
        seen = [self.next()]
        while seen[-1][0] != kind:
            seen.append(self.next())
        return seen


Watch = Callable[..., Viewer]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with ExitStack() as stack:

        def begin(server: HttpServer, token: str = "", place: str = "") -> Viewer:
            headers = {"Authorization": f"Bearer {token}", "Last-Event-ID": place}
            given = {name: value for name, value in headers.items() if not value.endswith(" ") and value}
            return Viewer(
                stack.enter_context(urlopen(Request(f"http://{server.address}/events", headers=given), timeout=5))
            )

        yield begin


def rows(seen: list[tuple[str, str]], kind: str) -> list[dict[str, Any]]:
    return [json.loads(data) for each, data in seen if each == kind]


def append(file: Path, text: str) -> None:
    with file.open("a") as out:
        out.write(text)


def test_a_viewer_gets_the_whole_run_and_then_what_follows(run_dir: Path, serve: Serve, watch: Watch) -> None:
    viewer = watch(serve(run_dir))
    seen = viewer.until("caught_up")
    assert seen[0][0] == "begin"
    about = json.loads(seen[0][1])
    assert (about["name"], about["live"], about["task"], about["rounds"]) == ("first", False, "digits", 6)
    assert [row["round"] for row in rows(seen, "round")] == [1, 2, 3, 4, 5, 6]
    assert len(rows(seen, "event")) == len((run_dir / "events.jsonl").read_text().splitlines())
    assert len(rows(seen, "nodes")[0]) == 3
    assert rows(seen, "summary")[0]["policy"] == "reactive"
    append(run_dir / "rounds.jsonl", lines([round_of(7, 7.9)]))
    assert json.loads(viewer.next()[1])["round"] == 7


def test_half_a_line_is_sent_when_it_is_whole(run_dir: Path, serve: Serve, watch: Watch) -> None:
    viewer = watch(serve(run_dir, live=True))
    viewer.until("caught_up")
    line = lines([round_of(7, 7.9)])
    append(run_dir / "rounds.jsonl", line[:40])
    append(run_dir / "events.jsonl", lines([{"seconds": 8, "kind": "paused", "text": "paused"}]))
    assert viewer.next()[0] == "event"
    append(run_dir / "rounds.jsonl", line[40:])
    assert viewer.next() == ("round", line.strip())


def test_who_comes_back_gets_only_what_followed(run_dir: Path, serve: Serve, watch: Watch) -> None:
    server = serve(run_dir)
    first = watch(server)
    first.until("caught_up")
    first.reply.close()
    append(run_dir / "rounds.jsonl", lines([round_of(7, 7.9)]))
    seen = watch(server, place=first.place).until("caught_up")
    assert seen[0][0] == "about"
    assert [row["round"] for row in rows(seen, "round")] == [7]
    assert rows(seen, "event") == []
    for wrong in ("x", "a.b.c", f"{first.place}9.9", "-1.-1", first.place.rpartition(".")[0], "½.½.½"):
        assert watch(server, place=wrong.encode().decode("latin-1")).next()[0] == "begin"


def test_another_run_in_its_place_begins_anew(run_dir: Path, serve: Serve, watch: Watch) -> None:
    viewer = watch(serve(run_dir))
    viewer.until("caught_up")
    for name in ("rounds.jsonl", "events.jsonl"):
        (run_dir / "new").write_text(lines([round_of(1, 1.9)]) if name == "rounds.jsonl" else "")
        (run_dir / "new").replace(run_dir / name)
    seen = viewer.until("round")
    assert any(kind == "begin" for kind, _ in seen)
    assert json.loads(seen[-1][1])["round"] == 1


def test_a_damaged_directory_is_shown_with_what_is_missing(run_dir: Path, serve: Serve, watch: Watch) -> None:
    (run_dir / "rounds.jsonl").unlink()
    (run_dir / "nodes.json").unlink()
    (run_dir / "config.yaml").write_text("training: [")
    append(run_dir / "events.jsonl", '{"seconds": 9, "ki')
    seen = watch(serve(run_dir)).until("caught_up")
    notes = [data for kind, data in seen if kind == "note"]
    assert "rounds.jsonl is missing." in notes
    assert "nodes.json is missing." in notes
    assert "The last line of events.jsonl is cut short and is left out." in notes
    assert json.loads(seen[0][1])["faults"] == ["config.yaml cannot be used: it is not valid YAML."]


def test_no_record_can_pose_as_another_event(run_dir: Path, serve: Serve, watch: Watch) -> None:
    with (run_dir / "events.jsonl").open("ab") as out:
        out.write(b"x\rid: 1\r\revent: begin\rdata: {}\r\r\x00\xff\n")
    (run_dir / "summary.json").write_bytes(b'{"a":\r\revent: begin\r\r\n\nevent: begin\n\n1}')
    seen = watch(serve(run_dir)).until("caught_up")
    assert [kind for kind, _ in seen].count("begin") == 1
    assert {kind for kind, _ in seen} == {"begin", "event", "round", "nodes", "summary", "caught_up"}


def test_a_line_that_is_too_long_is_left_out(run_dir: Path, serve: Serve, watch: Watch) -> None:
    (run_dir / "events.jsonl").write_bytes(b"x" * (MAX_LINE_BYTES + 10) + b"\n" + b'{"seconds": 1}\n')
    seen = watch(serve(run_dir)).until("caught_up")
    assert ("note", "A line of events.jsonl is too long and is left out.") in seen
    assert rows([each for each in seen if each[1].startswith("{")], "event") == [{"seconds": 1}]


def test_the_roles_of_grpc_hold_here(run_dir: Path, serve: Serve, watch: Watch) -> None:
    server = serve(run_dir, TOKENS)
    for role in (Role.VIEWER, Role.OPERATOR):
        assert watch(server, TOKENS[role]).next()[0] == "begin"
    for token, status, text in (
        ("", 401, b"the token is missing or wrong"),
        ("guess", 401, b"the token is missing or wrong"),
        (TOKENS[Role.NODE], 403, b"the join token does not permit it"),
    ):
        with pytest.raises(HTTPError) as caught:
            watch(server, token)
        with caught.value as refused:
            assert (refused.code, text in refused.read()) == (status, True)
    with urlopen(f"http://{server.address}/") as page:  # what holds nothing of the run is open
        assert page.status == 200


def test_there_are_only_so_many_viewers(
    run_dir: Path, serve: Serve, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_VIEWERS_OF_CALLER", 2)
    server = serve(run_dir)
    viewers = [watch(server) for _ in range(2)]
    for viewer in viewers:
        viewer.until("caught_up")
    with pytest.raises(HTTPError, match="503"):
        watch(server)
    viewers[0].reply.close()
    append(run_dir / "events.jsonl", '{"seconds": 10}\n')
    viewers[1].next()
    for _ in range(100):
        try:
            watch(server).next()
            break
        except HTTPError as error:
            error.close()
    else:
        pytest.fail("the place of who left was not given to another")


def fetch(address: str, **headers: str) -> tuple[bytes, Mapping[str, str]]:
    with urlopen(Request(address, headers=headers)) as reply:
        return reply.read(), reply.headers


def test_the_page_is_small_and_loads_nothing_from_elsewhere(run_dir: Path, serve: Serve) -> None:
    server = serve(run_dir)
    body, headers = fetch(f"http://{server.address}/")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "//" not in page
    assert re.search(r"<script>|\son\w+=|style=", page) is None
    size = sent = 0
    folder = Path(feed.__file__).parent / "static"
    for file in folder.iterdir():
        address = f"http://{server.address}/" + ("" if file.name == "index.html" else f"page/{file.name}")
        body, headers = fetch(address)
        packed, of_packed = fetch(address, **{"Accept-Encoding": "br, gzip"})
        assert headers["Content-Security-Policy"] == of_packed["Content-Security-Policy"] == policy
        assert gzip.decompress(packed) == body
        assert body.count(b"\n") == file.read_bytes().count(b"\n")  # errors name lines of the source
        size, sent = size + len(body), sent + len(packed)
    assert sent <= 60_000
    assert size <= 150_000


def test_files_are_sent_without_indentation_and_comments() -> None:
    source = b"// one\n  /** two\n   * three */\n  if (a) { // why\n    b(`  c // d`);\n  }\n"
    assert static_files.as_sent("a.js", source) == b"\n\n\nif (a) { // why\nb(`  c // d`);\n}\n"
    assert static_files.as_sent("a.css", b"* { margin: 0; }\n  /* x */\n") == b"* { margin: 0; }\n\n"
    assert static_files.as_sent("uPlot.css", source) == source
    for file in (Path(feed.__file__).parent / "static").glob("[!u]*.js"):  # no text that goes on in another line
        assert all(line.count("`") % 2 == 0 for line in file.read_text().splitlines()), file.name


def test_a_large_file_is_sent_seldom(run_dir: Path) -> None:
    clock, nodes = ManualClock(), run_dir / "nodes.json"
    files = PacedFiles(run_dir, clock)
    first = files.states()
    assert first == record_files.states(run_dir)

    def replace(size: int) -> None:
        (run_dir / "new").write_bytes(b" " * size)
        (run_dir / "new").replace(nodes)

    clock.advance(1.0)
    replace(700_000)
    large = files.states()
    assert large == record_files.states(run_dir) != first  # what came before was small
    replace(10)
    append(run_dir / "events.jsonl", "{}\n")
    clock.advance(6.9)
    assert files.states()[-1] == large[-1]
    assert files.states()[0] != large[0]  # lines are never held back
    clock.advance(0.2)
    assert files.states() == record_files.states(run_dir)
