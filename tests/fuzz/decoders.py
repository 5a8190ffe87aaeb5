"""Registry of the decoders that take bytes, text or files from outside, each with inputs that it accepts.

`test_decoders.py` fuzzes all of them, and fails where a function with the name of a decoder is neither here nor
listed as one that reads nothing from outside.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from hypergpu.common import strict_json, wire
from hypergpu.common.address import split_address
from hypergpu.common.codecs import BLOCK_VALUES, CODECS, PayloadFormat
from hypergpu.common.config import SystemConfig
from hypergpu.common.config.loading import load_config, read_yaml
from hypergpu.common.errors import HyperGPUError
from hypergpu.common.files import read_bytes, read_text
from hypergpu.common.http_messages import parse_head
from hypergpu.common.latest import find_run
from hypergpu.common.metric import ACCURACY
from hypergpu.common.roles import KINDS, Role
from hypergpu.common.signed_note import unverified, verifier_key
from hypergpu.common.tensors import Assembler, Chunk, chunks
from hypergpu.common.text import parse_size
from hypergpu.common.tls import read_authority, read_pair
from hypergpu.common.token import token_file
from hypergpu.coordinator import convert, failpoints, scraper
from hypergpu.coordinator.checkpoints import read_any_tensors, read_tensors, write_tensors
from hypergpu.coordinator.core.links.profile import ROUND_TRIP_QUANTILES
from hypergpu.coordinator.initial_model import initial_values
from hypergpu.coordinator.page.record_files import Place, read_piece, states
from hypergpu.export import export_model
from hypergpu.ledger.files import read_key
from hypergpu.ledger.proofs import check, prove
from hypergpu.ledger.verifying import verify
from hypergpu.local_run import read_summary
from hypergpu.netsim_proxy.api import convert as netsim_convert
from hypergpu.netsim_proxy.config import proxy_file, scenario_file
from hypergpu.netsim_proxy.config.link_map_file import parse_link_map
from hypergpu.netsim_proxy.config.profile_file import load_profiles, parse_profiles
from hypergpu.netsim_proxy.io.addresses import Address
from hypergpu.netsim_proxy.link.access_lane import UpstreamBandwidth
from hypergpu.netsim_proxy.link.traces import parse_mahimahi, parse_trace
from hypergpu.netsim_proxy.relay.client_hello import Incomplete, server_name
from hypergpu.netsim_proxy.relay.header_blocks import node_id_in
from hypergpu.netsim_proxy.relay.http2 import Http2Error, frames, increment_of, read_settings
from hypergpu.node import calibration, lease_file, naming
from hypergpu.node.client import _assembler_of, missing_of
from hypergpu.node.core.held_parameters import HeldParameters
from hypergpu.node.core.witness import Witness
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import netsim_pb2 as net
from hypergpu.report.page import page
from hypergpu.report.run import read_run
from hypergpu.rewards.addresses import read_addresses
from hypergpu.rewards.scores import Basis, read_epoch
from hypergpu.simulation import scenario_file as simulated
from hypergpu.simulation.compute import read_rounds
from hypergpu.simulation.fork.state import read_state
from hypergpu.simulation.planning.links_file import parse_links
from hypergpu.simulation.thresholds import parse_threshold
from hypergpu.tasks import build
from hypergpu.tasks.saved import SavedModel
from tests.coordinator.test_services import toy_task
from tests.fuzz.samples import (
    CONFIG,
    DATA,
    DOWNLOAD,
    ENCODING,
    EVENT,
    HEADER,
    IDENTITY,
    LINKS,
    MAHIMAHI,
    MANIFEST,
    PROFILES,
    PROTO_MANIFEST,
    PROXY,
    REGISTER,
    REPORT,
    ROUNDS,
    SCENARIO,
    STEPS,
    SUMMARY,
    TERMS,
    TRACE,
    WORK,
)
from tests.hypergpu.ledger_runs import ANNOUNCED, SIGNER, receipt, write_run

ROOT: Final = Path(__file__).resolve().parents[2]
_FOLDER: Final = TemporaryDirectory(prefix="hypergpu-fuzz-")


@dataclass(frozen=True)
class Decoder:
    """A function that reads what comes from outside."""

    read: Callable[[bytes], object]
    valid: Sequence[bytes] | Sequence[Message]
    """Inputs that it accepts, or messages from which they are made."""
    errors: tuple[type[Exception], ...] = (HyperGPUError,)
    """What it may raise, as its docstring says."""
    accepts_valid: bool = True


def of_text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Let a parser of text read bytes, as `read_text` hands it what a file holds."""
    return lambda data: parse(data.decode("utf-8", "replace"))


def of_file(read: Callable[[Path], object], name: str = "file") -> Callable[[bytes], object]:
    """Let a reader of a file read bytes."""
    file = Path(_FOLDER.name) / name

    def write_and_read(data: bytes) -> object:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
        return read(file)

    return write_and_read


def of_message(kind: type[Message], convert_it: Callable[[Any], object]) -> Callable[[bytes], object]:
    """Let a converter of a message read bytes; gRPC itself refuses those that are no message."""

    def parse(data: bytes) -> object:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return None
        return convert_it(message)

    return parse


def _messages(kind: type[Message], convert_it: Callable[[Any], object], *valid: Message, **options: Any) -> Decoder:
    return Decoder(of_message(kind, convert_it), valid, **options)


def _texts(parse: Callable[[str], object], *valid: str, **options: Any) -> Decoder:
    return Decoder(of_text(parse), [text.encode() for text in valid], **options)


# ---------------------------------------------------------------- what decoders accept

_LOCAL = pb.LocalSettings(momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=1.0, proximal=0.1, keeps_state=True)
_ORDER = pb.WorkOrder(
    work=WORK,
    manifest=PROTO_MANIFEST,
    batch_size=8,
    local_steps=2,
    learning_rate=0.1,
    deadline_seconds=9.0,
    shard=pb.Shard(index=0, count=2, partition="iid"),
    local_optimizer="sgd",
    update=ENCODING,
    parameters=ENCODING,
    parameters_version=2,
    connections=pb.Connections(down=1, up=1),
    local=_LOCAL,
)
_ORDER_OF_FRAGMENTS = pb.WorkOrder()
_ORDER_OF_FRAGMENTS.CopyFrom(_ORDER)
_ORDER_OF_FRAGMENTS.fragments.CopyFrom(pb.OrderFragments(count=2, update=1, parameters=[0, 1], version=2))
_ORDER_OF_FRAGMENTS.update.payload_bytes = 16
_CHUNK = wire.encode_part(next(iter(chunks(np.arange(16, dtype=np.float32)))))
_PAGE = (
    b"# HELP x y\n" + f'{scraper.CALLS}{{outcome="success"}} 12.0\n{scraper.CALLS}{{outcome="failure"}} 1\n'.encode()
)
_ANSWER = (
    b"\0\7\x81\x80\0\1\0\1\0\0\0\0\x011\x010\x010\x03127\x07in-addr\x04arpa\0\0\x0c\0\1"
    b"\xc0\x0c\0\x0c\0\1\0\0\0\x3c\0\x14\x0eproject-node-1\x03net\0"
)
_HEADERS = bytes.fromhex("8286448c60a4b4a5254a2d4a5b4a52d5") + b"\x10\x09x-node-id\x01a"
_FRAMES = b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\x64" + b"\0\0\2\1\4\0\0\0\1\x82\x86"
_SETTINGS = b"\0\1\0\0\x10\0\0\3\0\0\0\x64\0\5\0\0\x40\0"
_HELLO_NAMES = b"\0\0" + b"\0\x10" + b"\0\x0e\0\0\x0bexample.com"
_HELLO_BODY = b"\3\3" + b"r" * 32 + b"\0" + b"\0\2\x13\1" + b"\1\0" + b"\0\x14" + _HELLO_NAMES
_HELLO = (
    b"\x16\3\1" + (len(_HELLO_BODY) + 4).to_bytes(2, "big") + b"\1" + len(_HELLO_BODY).to_bytes(3, "big") + _HELLO_BODY
)


def _payload(name: str) -> Decoder:
    """Return the decoder of the payloads of a codec, for a block and a half with two values of state."""
    form = PayloadFormat(CODECS[name], BLOCK_VALUES + 9, 2)
    payload, _ = form.encode(np.random.default_rng(0).standard_normal(form.size).astype(np.float32))

    def read(data: bytes) -> None:
        out = np.zeros(form.size, np.float32)
        with np.errstate(all="ignore"):  # who uses the values checks that they are finite
            form.add_to(np.frombuffer(data, np.uint8), out)
            form.decode(np.frombuffer(data, np.uint8), out)

    return Decoder(read, [payload.tobytes()])


def _work_order(order: pb.WorkOrder) -> object:
    """Use an order as a node does before its parameters arrive."""
    wire.local_settings_from_proto(order.local)
    return _assembler_of(order, HeldParameters(MANIFEST, MANIFEST.size))


def _part_and_payload(data: bytes) -> object:
    part = wire.decode_update_part(data)
    if isinstance(part, Chunk):
        return Assembler(np.empty(64, np.uint8)).add(part)
    return part


def _message_of(kind: type[Message], data: Message) -> bytes:
    return kind(**{"header" if kind is pb.UpdatePart else "order": data}).SerializeToString()


def _run_directory(read: Callable[[Path], object], name: str, **others: str) -> Callable[[bytes], object]:
    """Let a reader of run directories read one in which a file holds these bytes."""
    folder = Path(_FOLDER.name) / f"run-{name}-{'-'.join(others) or 'alone'}"

    def write_and_read(data: bytes) -> object:
        folder.mkdir(exist_ok=True)
        for other, text in others.items():
            (folder / other.replace("_", ".")).write_text(text)
        (folder / name).write_bytes(data)
        return read(folder)

    return write_and_read


def _report(directory: Path) -> object:
    return page(read_run(directory))


def _lease(file: Path) -> str:
    lease = lease_file.LeaseFile(file)
    try:
        return lease.read()
    finally:
        lease.close()


def _model() -> tuple[SavedModel, bytes]:
    """Return what converts a small model, and its file."""
    saved = SavedModel(build(toy_task(), 0))
    file = Path(_FOLDER.name) / "written.safetensors"
    score = {"round": "3", "loss": "0.5", "accuracy": "0.9", "metric": ACCURACY.model_dump_json(), "task": "digits"}
    write_tensors(file, saved.initial, score)
    return saved, file.read_bytes()


def _certificates() -> tuple[bytes, bytes, bytes]:
    """Return the certificate of an authority, and that of a server with its key."""
    from hypergpu.certificates import Authority

    folder = Path(_FOLDER.name) / "authority"
    file = Authority(folder).sign_server(["localhost"], 30)
    return (folder / "ca.pem").read_bytes(), file.read_bytes(), file.with_name("server-key.pem").read_bytes()


def _pair(data: bytes) -> object:
    """Read a certificate and its key from one file each, cut from the bytes."""
    certificate, key = (Path(_FOLDER.name) / name for name in ("pair.pem", "pair.key"))
    certificate.write_bytes(data)
    key.write_bytes(data)
    return read_pair(certificate, key)


def _see(shown: pb.LedgerCheckpoint) -> bool:
    """See a checkpoint as a node that has seen three leaves."""
    witness = Witness()
    witness.begin(str(SIGNER.verifier))
    witness.see(SIGNER.sign(3, _LEDGER._tree.root(3)), [])
    return witness.see(shown.note, shown.proof)


def _ledger_file(name: str) -> Decoder:
    """Return the verification of a ledger in which a file holds these bytes."""
    folder = Path(_FOLDER.name) / f"ledger-{name}"
    shutil.copytree(_LEDGER_RUN, folder)
    valid = (folder / name).read_bytes()

    def verified(data: bytes) -> bool:
        (folder / name).write_bytes(data)
        faults = verify(folder).faults
        assert faults or data == valid, "a change was not found"
        return not faults

    return Decoder(verified, [valid])


_LEDGER_RUN: Final = Path(_FOLDER.name) / "ledger"
_LEDGER: Final = write_run(_LEDGER_RUN, [[ANNOUNCED, receipt(1)], [receipt(2)]])
_CA, _SERVER, _SERVER_KEY = _certificates()
_SAVED, _MODEL = _model()
_NOTE_KEY, _NOTE = str(SIGNER.verifier), SIGNER.sign(5, b"h" * 32)
_KEY = {"model": "x"}
_TIMES = json.dumps({"format": 1, "key": _KEY, "times": {"seconds_per_step": 0.01, "seconds_per_sample": 1e-4}})
_CALIBRATION = json.dumps({**json.loads(_TIMES), "format": calibration._FORMAT})
_SOME_SCENARIOS = [(ROOT / f"scenarios/{name}.yaml").read_text() for name in ("churn", "partition", "recovery")]
_RUN = {"rounds_jsonl": ROUNDS, "summary_json": json.dumps(SUMMARY)}

DECODERS: Final[Mapping[str, Decoder]] = {
    # -- messages of nodes
    "common.wire.decode_update_part": Decoder(_part_and_payload, [_CHUNK, _message_of(pb.UpdatePart, HEADER)]),
    "common.wire.decode_work_part": Decoder(wire.decode_work_part, [_CHUNK, _message_of(pb.WorkPart, _ORDER)]),
    "common.wire.manifest_from_proto": _messages(pb.Manifest, wire.manifest_from_proto, PROTO_MANIFEST),
    "common.wire.local_settings_from_proto": _messages(pb.LocalSettings, wire.local_settings_from_proto, _LOCAL),
    "common.wire.codec_from_proto": _messages(pb.Encoding, wire.codec_from_proto, ENCODING),
    "common.wire.data_report_from_proto": _messages(pb.DataReport, wire.data_report_from_proto, DATA),
    "common.wire.terms_from_proto": _messages(pb.NodeTerms, wire.terms_from_proto, TERMS),
    "common.wire.step_times_from_proto": _messages(pb.StepTimes, wire.step_times_from_proto, STEPS),
    "common.wire.identity_from_proto": _messages(pb.TaskIdentity, wire.identity_from_proto, IDENTITY),
    "coordinator.convert.registration": _messages(
        pb.RegisterRequest, lambda request: convert.registration(request, "a", "127.0.0.1", ""), REGISTER
    ),
    "coordinator.convert.report": Decoder(convert.report, [REPORT]),
    "coordinator.convert.text": _texts(lambda text: convert.text(text, "state"), "training"),
    "coordinator.convert.arrived": _messages(pb.UpdateHeader, convert.arrived, HEADER),
    "coordinator.convert.download": _messages(
        pb.PullWorkRequest, convert.download, pb.PullWorkRequest(node_id="a", download=DOWNLOAD)
    ),
    **{f"common.codecs.{name}": _payload(name) for name in sorted(CODECS)},
    # -- messages of a coordinator
    "node.client._assembler_of": _messages(pb.WorkOrder, _work_order, _ORDER, _ORDER_OF_FRAGMENTS),
    "node.client.missing_of": _messages(
        pb.UploadProgress,
        lambda progress: missing_of(progress, np.zeros(64, np.uint8)),
        pb.UploadProgress(next_offset=8, missing=[pb.ByteRange(start=8, end=64)]),
    ),
    "node.core.witness.see": _messages(
        pb.LedgerCheckpoint, _see, pb.LedgerCheckpoint(note=_LEDGER.published.note, proof=_LEDGER.consistency(3))
    ),
    # -- messages to the proxy, and what it relays
    "netsim_proxy.api.convert.event_from_proto": _messages(net.Event, netsim_convert.event_from_proto, EVENT),
    "netsim_proxy.api.convert.bandwidth_from_proto": _messages(
        net.SetUpstreamBandwidthRequest,
        lambda request: netsim_convert.bandwidth_from_proto(request, UpstreamBandwidth()),
        net.SetUpstreamBandwidthRequest(down_mbit=10.0, up_mbit=5.0, queue_bytes=1 << 20),
    ),
    "netsim_proxy.relay.header_blocks.node_id_in": Decoder(node_id_in, [_HEADERS], (Http2Error,)),
    "netsim_proxy.relay.http2.frames": Decoder(lambda data: list(frames(data)), [_FRAMES]),
    "netsim_proxy.relay.http2.read_settings": Decoder(read_settings, [_SETTINGS], (Http2Error,)),
    "netsim_proxy.relay.http2.increment_of": Decoder(increment_of, [b"\0\0\1\0"], (Http2Error,)),
    "netsim_proxy.relay.client_hello.server_name": Decoder(server_name, [_HELLO], (Incomplete,)),
    "netsim_proxy.io.addresses.parse": _texts(Address.parse, "127.0.0.1:80", "unix:/run/x", "[::1]:443"),
    # -- answers of others
    "coordinator.scraper.parse": Decoder(scraper.parse, [_PAGE], (ValueError,)),
    "node.naming.decode_answer": Decoder(partial(naming.decode_answer, 7), [_ANSWER], (ValueError,)),
    # -- files of the user
    "common.config.loading.load_config": Decoder(
        of_file(lambda file: load_config(SystemConfig, file), "config.yaml"), [CONFIG.encode()]
    ),
    "common.config.loading.read_yaml": Decoder(of_file(read_yaml), [CONFIG.encode()]),
    "common.config.loading.overrides": _texts(
        lambda text: load_config(SystemConfig, overrides=[text]), "training.rounds=50", "server.scrape_hosts=[a, b]"
    ),
    "netsim_proxy.config.proxy_file.parse_config": _texts(lambda text: proxy_file.parse_config(text, "x"), *PROXY),
    "netsim_proxy.config.profile_file.parse_profiles": _texts(lambda text: parse_profiles(text, "x"), *PROFILES),
    "netsim_proxy.config.profile_file.load_profiles": Decoder(of_file(load_profiles, "path.csv"), [TRACE.encode()]),
    "netsim_proxy.config.link_map_file.parse_link_map": _texts(
        lambda text: parse_link_map(text, "x", {}, {}),
        json.dumps({"addresses": {"10.1.0.0/16": "rack"}, "server_names": {"*.example.com": "node_1"}}),
    ),
    "netsim_proxy.config.scenario_file.parse_scenario": _texts(
        lambda text: scenario_file.parse_scenario(text, "x"), *_SOME_SCENARIOS, *SCENARIO
    ),
    "simulation.scenario_file.parse_scenario": _texts(
        lambda text: simulated.parse_scenario(text, "x"), *_SOME_SCENARIOS, *SCENARIO
    ),
    "netsim_proxy.link.traces.parse_trace": _texts(lambda text: parse_trace(text, "x"), TRACE),
    "netsim_proxy.link.traces.parse_mahimahi": _texts(lambda text: parse_mahimahi(text, "x"), MAHIMAHI),
    "simulation.planning.links_file.parse_links": _texts(lambda text: parse_links(text, "x"), LINKS),
    "simulation.thresholds.parse_threshold": _texts(parse_threshold, "speedup>=1.5"),
    "coordinator.failpoints.parse": _texts(failpoints.parse, "log.sync=delay:0.5@2-4,log.step=crash"),
    "common.address.split_address": _texts(split_address, "127.0.0.1:80", "[::1]:443", "node.example.org:1"),
    "common.text.parse_size": _texts(parse_size, "44MB", "1.5GiB", errors=(ValueError,)),
    "common.strict_json.parse_object": Decoder(strict_json.parse_object, [REPORT], (ValueError,)),
    "common.strict_json.read_object": Decoder(of_file(strict_json.read_object), [REPORT]),
    "common.strict_json.read_lines": Decoder(
        of_file(lambda file: list(strict_json.read_lines(file))), [REPORT + b"\n" + REPORT]
    ),
    "common.files.read_text": Decoder(of_file(read_text), [b"text"]),
    "common.files.read_bytes": Decoder(of_file(partial(read_bytes, max_bytes=1_000)), [b"text"]),
    "common.token.token_file": Decoder(
        of_file(lambda file: token_file(file, KINDS[Role.NODE].option).all), [b"secret\nother\n"]
    ),
    "common.tls.read_authority": Decoder(of_file(read_authority), [_CA]),
    "common.tls.read_pair": Decoder(_pair, [_SERVER + _SERVER_KEY]),
    "common.latest.find_run": Decoder(of_file(find_run, "latest"), [b"20260101-run"]),
    "ledger.proofs.check": _texts(lambda text: check(text, SIGNER.verifier), prove(_LEDGER_RUN, "node_1", 2)),
    # -- files of the programs themselves, which may be damaged or edited
    "ledger.verifying.leaves": _ledger_file("ledger.jsonl"),
    "ledger.verifying.checkpoints": _ledger_file("ledger.checkpoints"),
    "ledger.verifying.rounds": _ledger_file("rounds.jsonl"),
    "node.lease_file.read": Decoder(of_file(_lease, "lease"), [b"abc.def"]),
    "node.calibration._parsed": Decoder(
        lambda data: calibration._parsed(data, _KEY), [_CALIBRATION.encode()], (HyperGPUError, ValueError, KeyError)
    ),
    "report.run.read_run": Decoder(
        _run_directory(_report, "rounds.jsonl"), [line.encode() for line in ROUNDS.splitlines()]
    ),
    "report.run.summary": Decoder(
        _run_directory(_report, "summary.json", rounds_jsonl=ROUNDS), [json.dumps(SUMMARY).encode()]
    ),
    "report.run.events": Decoder(
        _run_directory(_report, "events.jsonl", rounds_jsonl=ROUNDS),
        [json.dumps({"seconds": 1.0, "round": 1, "kind": "decision", "text": "batch x", "figures": {"a": 1}}).encode()],
    ),
    "local_run.read_summary": Decoder(_run_directory(read_summary, "summary.json"), [json.dumps(SUMMARY).encode()]),
    "coordinator.checkpoints.read_tensors": Decoder(of_file(read_tensors, "x.safetensors"), [_MODEL]),
    "coordinator.checkpoints.read_any_tensors": Decoder(of_file(read_any_tensors, "x.safetensors"), [_MODEL]),
    "coordinator.initial_model.initial_values": Decoder(
        of_file(lambda file: initial_values(file, _SAVED), "x.safetensors"), [_MODEL]
    ),
    "export.export_model": Decoder(
        _run_directory(lambda run: export_model(run, "last", run / "out.safetensors"), "model.safetensors"), [_MODEL]
    ),
    "rewards.scores.read_epoch": Decoder(
        _run_directory(lambda run: [read_epoch(run, by) for by in reversed(Basis)], "rounds.jsonl"),
        [line.encode() for line in ROUNDS.splitlines()],
    ),
    "rewards.addresses.read_addresses": Decoder(
        of_file(read_addresses), [b"node,address\na,0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\nb,\n"]
    ),
    "ledger.files.read_key": _texts(read_key, _NOTE_KEY),
    "common.signed_note.open": _texts(verifier_key(_NOTE_KEY).open, _NOTE),
    "common.signed_note.unverified": _texts(unverified, _NOTE),
    "common.http_messages.parse_head": Decoder(
        lambda data: parse_head(data, "127.0.0.1"),
        [b"GET /x?a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"],
    ),
    "coordinator.page.record_files.read_piece": Decoder(
        _run_directory(lambda run: read_piece(run, states(run), Place("x")), "rounds.jsonl"),
        [line.encode() for line in ROUNDS.splitlines()],
    ),
    "simulation.compute.read_rounds": Decoder(
        _run_directory(read_rounds, "rounds.jsonl"), [line.encode() for line in ROUNDS.splitlines()]
    ),
    "simulation.fork.state.read_state": Decoder(
        _run_directory(read_state, "rounds.jsonl", config_yaml=CONFIG),
        [line.encode() for line in ROUNDS.splitlines()],
    ),
    "simulation.fork.state.round_trips": Decoder(
        _run_directory(read_state, "nodes.json", config_yaml=CONFIG, rounds_jsonl=ROUNDS),
        [json.dumps([{"node_id": "a", **dict.fromkeys(ROUND_TRIP_QUANTILES, 1.0)}]).encode()],
    ),
}
"""Decoders by module and function."""
