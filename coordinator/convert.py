"""Conversion between protocol messages and internal types, with checks of everything received."""

import math
from collections.abc import Mapping
from typing import Any

from hypergpu.common import strict_json
from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.common.metric import finite
from hypergpu.common.node_terms import FREE
from hypergpu.common.signed_note import PUBLIC_KEY_BYTES
from hypergpu.common.transfer_meter import Transfer
from hypergpu.common.wire import (
    codec_from_proto,
    data_report_from_proto,
    data_report_to_proto,
    encoding_to_proto,
    identity_from_proto,
    identity_to_proto,
    local_settings_to_proto,
    manifest_to_proto,
    step_times_from_proto,
    terms_from_proto,
    terms_to_proto,
)
from hypergpu.coordinator.core.decisions import Decision
from hypergpu.coordinator.core.links.profile import RATE_FIGURES
from hypergpu.coordinator.core.model.fragment_sendings import Held
from hypergpu.coordinator.core.model.global_model import GlobalModel
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.machine import RoundMachine
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.core.session import Register
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.run_records import RunEvent
from hypergpu.protos import coordinator_pb2 as pb

MAX_TEXT = 256
MAX_REPORT_BYTES = 1024
MAX_SAMPLES = 1 << 40
MAX_TRANSFER_BYTES = 1 << 50
LINK_FIGURES = ("latency_ms", "loaded_latency_ms", "loss_rate", "score", *RATE_FIGURES)
"""Figures of a link that the message for a node has under the same names."""


def text(value: str, what: str) -> str:
    """Return a received text with control characters replaced by spaces.

    Raises:
        InvalidInput: The text is longer than 256 characters.
    """
    if len(value) > MAX_TEXT:
        raise InvalidInput(f"{what} has {len(value)} characters; {MAX_TEXT} are allowed")
    return "".join(c if c.isprintable() else " " for c in value)


def registration(request: pb.RegisterRequest, name: str, peer_host: str, lease: str) -> Register:
    """Return the registration of node `name`, which connects from `peer_host` and shows the secret `lease`.

    Raises:
        InvalidInput: A text is too long.
        ProtocolError: The identity of its task, or the figures of its data, terms or steps are out of range.
    """
    info = {
        "gpu": text(request.gpu.name, "gpu.name"),
        "version": text(request.version, "version"),
        "region": text(request.region, "region"),
        "address": text(request.metrics_address, "metrics_address"),
        "peer": peer_host,
        **({"key": _key(request.key)} if request.key else {}),
        **({"numerics": text(request.numerics, "numerics")} if request.numerics else {}),
    }
    incarnation = text(request.incarnation, "incarnation")
    identity = identity_from_proto(request.identity) if request.HasField("identity") else None
    data = data_report_from_proto(request.data) if request.HasField("data") else None
    terms = terms_from_proto(request.terms) if request.HasField("terms") else FREE
    times = step_times_from_proto(request.step_times) if request.HasField("step_times") else None
    return Register(name, incarnation, request.largest_batch, info, identity, terms, data, lease, times)


def _key(key: bytes) -> str:
    """Return the public key of a node in hexadecimal digits.

    Raises:
        ProtocolError: It has another length.
    """
    if len(key) != PUBLIC_KEY_BYTES:
        raise ProtocolError(f"a key of {len(key)} bytes; an Ed25519 key has {PUBLIC_KEY_BYTES}")
    return key.hex()


def order(assign: ev.WorkAssigned, sending: Sending, engine: Engine, now: float) -> pb.WorkOrder:
    """Return the message that assigns a work unit, and announces its parameters."""
    config = engine.machine.config
    return pb.WorkOrder(
        work=pb.WorkId(run_id=engine.run_id, round=assign.round, node_id=assign.node, attempt=assign.attempt),
        manifest=manifest_to_proto(engine.model.manifest),
        batch_size=assign.batch_size,
        local_steps=assign.local_steps,
        learning_rate=assign.learning_rate,
        local_optimizer=assign.local_optimizer,
        local=local_settings_to_proto(config.local_settings),
        deadline_seconds=max(0.0, assign.deadline_at - now),
        update=encoding_to_proto(engine.model.payload_format(assign.codecs.update, assign.fragments)),
        parameters=encoding_to_proto(engine.model.payload_format(sending.codec, sending.fragments)),
        trial=assign.trial,
        accepted_round=assign.accepted_round,
        parameters_version=sending.version,
        base_version=sending.base,
        fragments=fragments(assign, sending, engine.model.fragments.count),
        repeats_round=assign.repeats.round if assign.repeats else 0,
        connections=pb.Connections(down=assign.connections.down, up=assign.connections.up),
        shard=pb.Shard(
            index=assign.shard.index,
            count=assign.shard.count,
            cursor=assign.shard.cursor,
            partition=config.partition,
            dirichlet_alpha=config.dirichlet_alpha,
            seed=config.seed,
        ),
    )


def fragments(assign: ev.WorkAssigned, sending: Sending, count: int) -> pb.OrderFragments | None:
    """Return the message for the fragments in the payloads of a work unit; None if they hold the whole model."""
    if assign.fragment is None:
        return None
    return pb.OrderFragments(
        count=count,
        update=assign.fragment,
        parameters=sending.fragments,
        version=sending.fragment_version,
        background=sending.background,
    )


def held(request: pb.PullWorkRequest) -> Held:
    """Return what a node says that it holds of the model."""
    return Held(request.parameters_version, request.fragment_versions)


def register_reply(name: str, lease: str, engine: Engine, heartbeat_seconds: float) -> pb.RegisterReply:
    """Return the reply to a registration."""
    config, model = engine.machine.config, engine.model
    return pb.RegisterReply(
        node_id=name,
        run_id=engine.run_id,
        task=config.task,
        seed=config.seed,
        heartbeat_seconds=heartbeat_seconds,
        manifest=manifest(model),
        identity=identity_to_proto(engine.identity) if engine.identity else None,
        partition=config.partition,
        lease=lease,
        ledger_key=str(engine.ledger.verifier),
    )


def manifest(model: GlobalModel) -> pb.Manifest:
    """Return the layout of the model's flat buffer."""
    return manifest_to_proto(model.manifest)


def arrived(header: pb.UpdateHeader) -> ev.UpdateArrived:
    """Return the event for the header of an update after checking its figures.

    Raises:
        ProtocolError: A figure is out of range, or the codec is unknown.
    """
    figures = (header.loss, header.compute_seconds, header.grad_norm, header.loss_before)
    if not 0 < header.samples <= MAX_SAMPLES:
        raise ProtocolError(f"an update over {header.samples} samples; expected 1 or more")
    if not 0 <= header.compute_seconds < math.inf:
        raise ProtocolError(f"compute_seconds is {header.compute_seconds}; expected 0 or more")
    loss, compute_seconds, grad_norm, loss_before = (float(f) for f in figures)
    if not 0 <= header.noise <= 1:
        raise ProtocolError(f"the noise of a codec is {header.noise}; expected 0 to 1")
    if not 0 <= header.optimizer_share <= 1:
        raise ProtocolError(f"the share of the optimizer is {header.optimizer_share}; expected 0 to 1")
    work = header.work
    return ev.UpdateArrived(
        work.node_id,
        work.round,
        work.attempt,
        header.samples,
        loss,
        compute_seconds,
        loss_before,
        grad_norm,
        loss_after=float(header.loss_after) if header.HasField("loss_after") else None,
        codec=codec_from_proto(header.encoding).name,
        noise=header.noise,
        optimizer_share=header.optimizer_share,
    )


def announced(header: pb.UpdateHeader) -> int | None:
    """Return the CRC-32C of the whole payload that a header announces; None if it announces none."""
    return header.payload_crc32c if header.HasField("payload_crc32c") else None


def download(message: pb.UpdateHeader | pb.PullWorkRequest) -> Transfer | None:
    """Return the download that a node reports; None if it reports none.

    Raises:
        ProtocolError: A figure is out of range.
    """
    if not message.HasField("download"):
        return None
    reported = message.download
    nbytes, before = reported.bytes, reported.bytes_before
    seconds, seconds_before = float(reported.seconds), float(reported.seconds_before)
    if not 0 < nbytes <= MAX_TRANSFER_BYTES or before > MAX_TRANSFER_BYTES:
        raise ProtocolError(f"a download of {nbytes} bytes after {before}; expected 1 to {MAX_TRANSFER_BYTES}")
    if not (0 <= seconds < math.inf and 0 <= seconds_before < math.inf):
        raise ProtocolError(f"a download took {seconds} s after {seconds_before} s; expected 0 or more")
    return Transfer(nbytes, seconds, before, seconds_before)


def report(data: bytes) -> dict[str, Any]:
    """Parse the report in a heartbeat; an empty one gives an empty object.

    Raises:
        InvalidInput: The report is larger than 1 KiB or not a JSON object.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise InvalidInput(f"a report of {len(data)} bytes; {MAX_REPORT_BYTES} are allowed")
    if not data:
        return {}
    try:
        return strict_json.parse_object(data)
    except ValueError as error:
        raise InvalidInput(f"the report of a heartbeat: {error}") from error


def decision(taken: Decision) -> pb.DecisionRecord:
    """Return the message for a decision."""
    return pb.DecisionRecord(
        round=max(0, taken.round), kind=taken.kind, subject=taken.subject, reason=taken.reason, detail=taken.detail
    )


def metric(machine: RoundMachine) -> pb.Metric:
    """Return the main metric of a run with its present value and target."""
    spec = machine.metric
    return pb.Metric(
        name=spec.name,
        better=spec.better,
        format=spec.format,
        unit=spec.unit,
        value=finite(machine.metric_value),
        target=machine.config.target_accuracy,
    )


def run_event(event: RunEvent) -> pb.RunEvent:
    """Return the message for a run event."""
    encoded = strict_json.dumps(event.row(), separators=(",", ":"), default=str)
    return pb.RunEvent(seconds=event.seconds, round=max(0, event.round), kind=event.kind, text=event.text, json=encoded)


def node_info(
    member: Member, engine: Engine, link: dict[str, Any], usefulness: Mapping[str, tuple[float, float]]
) -> pb.NodeInfo:
    """Return the message for a node. `link` may hold `LINK_FIGURES`, quality, state and reason."""
    useful, error = usefulness.get(member.node_id, (None, math.inf))
    return pb.NodeInfo(
        node_id=member.node_id,
        state=link.get("state") or engine.state_of(member.node_id),
        rounds_contributed=member.rounds_contributed,
        rounds_selected=member.rounds_selected,
        retries=member.retries,
        batch_size=member.batch_size or None,
        quality=link.get("quality") or "",
        gpu=member.info.get("gpu", ""),
        seconds_since_seen=max(0.0, engine.now - member.last_seen),
        rule=engine.machine.adaptation.overrides.of(member.node_id),
        reason=link.get("reason") or member.reason,
        compute_seconds=member.compute_seconds or None,
        address=member.info.get("address", ""),
        late=member.late,
        merged_late=member.merged_late,
        codecs=str(member.codecs or ""),
        noise=member.noise if member.codecs else None,
        connections_down=member.connections.down if member.connections else None,
        connections_up=member.connections.up if member.connections else None,
        compute_utilisation=member.utilisation,
        data=data_report_to_proto(member.data) if member.data else None,
        terms=terms_to_proto(member.terms),
        spent=member.spent,
        usefulness=useful,
        usefulness_error=finite(error),
        samples_used=engine.machine.shards.samples_used(member.node_id),
        **{name: link.get(name) for name in LINK_FIGURES},
    )
