"""A node in virtual time: a driver of the life cycle that `node/agent.py` drives in real time."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from hypergpu.common.config import SystemConfig
from hypergpu.common.connections import useful_connections
from hypergpu.common.errors import HyperGPUError, Unavailable
from hypergpu.common.keyed_random import KeyedRandom
from hypergpu.common.node_terms import NodeTerms
from hypergpu.common.step_times import StepTimes
from hypergpu.common.tensors import Payload
from hypergpu.common.transfer_meter import Transfer
from hypergpu.coordinator.core.model.fragment_sendings import NOTHING, after
from hypergpu.coordinator.core.model.outgoing import Sending
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.session import Directive
from hypergpu.netsim_proxy.link.outcomes import Direction
from hypergpu.node.core import events as life
from hypergpu.node.core.lifecycle import LifeCycle
from hypergpu.node.core.states import State
from hypergpu.simulation import message_sizes
from hypergpu.simulation.heartbeats import Heartbeats
from hypergpu.simulation.rpc import Arrived, SimulatedConnection, SimulatedRpc
from hypergpu.simulation.striped_rpc import StripedRpc
from hypergpu.simulation.virtual_time import VirtualTime
from hypergpu.simulation.work_transfers import WorkTransfers

UP: Final = Direction.UP
DOWN: Final = Direction.DOWN
_RPC_FAILED: Final = life.Failed(Unavailable("the RPC failed"))
_REGISTERED: Final = life.Registered()
_NO_WORK: Final = life.NoWork()
_TRAINED: Final = life.Trained()
_TRAINING: Final = State.TRAINING  # looking an enum's member up is slow
_PUSHED: Final = life.Pushed()
_BACKOFF_EXPIRED: Final = life.BackoffExpired()


class CoordinatorApi(Protocol):
    """The coordinator as a node calls it: each method runs when a request has arrived there."""

    def register(self, node: "SimulatedNode", rpc: SimulatedRpc) -> None:
        """Register: the reply is sent on `rpc`."""
        ...

    def pull(self, node: "SimulatedNode", rpc: SimulatedRpc) -> None:
        """PullWork: the work unit is sent on `rpc` when there is one."""
        ...

    def end_pull(self, node: "SimulatedNode", rpc: SimulatedRpc) -> bool:
        """Give up waiting for work on `rpc`; False if it was answered already."""
        ...

    def received(self, node: "SimulatedNode", sending: Sending, payload: Payload | None) -> None:
        """Note that parameters have arrived at the node; no RPC says so."""
        ...

    def begun(self, work: ev.WorkAssigned) -> None:
        """Note that the node begins its work while its fragments travel; no RPC says so."""
        ...

    def sent_ahead(self, node: "SimulatedNode", work: ev.WorkAssigned, nbytes: int) -> None:
        """PushUpdate: `nbytes` of a whole update, whose figures follow."""
        ...

    def computed(self, work: ev.WorkAssigned) -> None:
        """Note that the node has done its work, each time that it begins to send the update; no RPC says so."""
        ...

    def is_over(self, work: ev.WorkAssigned) -> bool:
        """Return whether the coordinator has no use for an update of this work."""
        ...

    def offer(self, work: ev.WorkAssigned, at: float) -> None:
        """PushUpdate: the header of an update that is needed, which arrives at `at`."""
        ...

    def progress(self, work: ev.WorkAssigned) -> life.ProgressKnown:
        """GetUploadProgress."""
        ...

    def push(
        self,
        node: "SimulatedNode",
        work: ev.WorkAssigned,
        compute_seconds: float,
        rpc: SimulatedRpc,
        *,
        nbytes: int,
    ) -> None:
        """PushUpdate: `nbytes` of a whole update, or only its header; the reply is sent on `rpc`."""
        ...

    def push_broke(self, node: "SimulatedNode", work: ev.WorkAssigned, next_offset: int) -> None:
        """PushUpdate: the stream broke when all bytes before `next_offset` had arrived."""
        ...

    def return_work(self, node: "SimulatedNode", work: ev.WorkAssigned, kind: str, detail: str) -> None:
        """ReturnWork."""
        ...

    def leave(self, node: "SimulatedNode", reason: str) -> None:
        """Leave."""
        ...

    def begin_download(self, node: "SimulatedNode", nbytes: int) -> None:
        """PullWork: the parameters are sent."""
        ...

    def downloaded(self, node: "SimulatedNode", transfer: Transfer) -> None:
        """PullWork or PushUpdate that reports the latest download."""
        ...

    def uploaded(self, node: "SimulatedNode", transfer: Transfer) -> None:
        """PushUpdate: its transfer has ended."""
        ...

    def heartbeat(self, node: "SimulatedNode", at: float, rtt_ms: float, loaded: bool) -> Directive:
        """Heartbeat that arrived at `at`, with the round trip of the one before it and whether that was loaded."""
        ...

    def is_straggler(self, node: "SimulatedNode") -> bool:
        """Return whether the node works on a round that is over."""
        ...


class LocalSteps(NamedTuple):
    """Steps of a work unit."""

    first: int
    """Number of the first step of the unit, among all steps of the node."""
    number: int
    batch_size: int
    optimizer: str
    """Name of the optimizer."""


class Compute(Protocol):
    """Duration of computing."""

    def seconds(self, node_id: str, steps: LocalSteps, now: float) -> float:
        """Return the seconds that a node computes for a work unit."""
        ...

    def step_times(self, node_id: str) -> StepTimes | None:
        """Return the time of a node's steps, as it measures it before its first work; None if it does not."""
        ...


class Start(NamedTuple):
    """Start of a node's process, and the time that it prepares its model and data."""

    join_delay_seconds: float = 0.0
    setup_seconds: float = 0.0


class SimulatedNode:
    """One node and its connection. `start` begins a process, whose life cycle decides what it does."""

    __slots__ = (
        "_api",
        "_backoff_key",
        "_compute",
        "_compute_seconds",
        "_handling_seconds",
        "_life",
        "_number",
        "_payload_bytes",
        "_poll_until",
        "_polling",
        "_prepared",
        "_settings",
        "_setup_seconds",
        "_step",
        "_time",
        "_transfers",
        "attempts",
        "connection",
        "failures",
        "heartbeats",
        "held",
        "incarnation",
        "info",
        "largest_batch",
        "node_id",
        "running",
        "terms",
    )  # fmt: skip

    terms: NodeTerms
    """Price and priority class with which it registers; set before it starts."""

    def __init__(
        self,
        node_id: str,
        connection: SimulatedConnection,
        api: CoordinatorApi,
        time: VirtualTime,
        compute: Compute,
        *,
        seed: int,
        payload_bytes: Callable[[str, tuple[int, ...]], int],
        config: SystemConfig,
        info: Mapping[str, str],
        setup_seconds: float = 0.0,
        handling_seconds: float = 0.0,
    ) -> None:
        self.node_id = node_id
        self.info = info
        """Facts about the node that it registers with."""
        self.largest_batch = 0
        self.connection = connection
        self.running = False
        self.incarnation = 0
        """Number of the current process."""
        self.attempts = self.failures = 0
        """RPCs that this process made, and those of them that failed."""
        self.heartbeats = Heartbeats(self, time, api, config.server.heartbeat_seconds)
        self.held = NOTHING
        self._api, self._time, self._compute = api, time, compute
        self._payload_bytes = payload_bytes
        self._settings = config.node
        self._backoff_key = (seed, "backoff", node_id)
        self._life = self._new_life()
        self._number = 0
        """Identity of the running operation."""
        self._step = 0
        self._compute_seconds = 0.0
        self._transfers = WorkTransfers()
        self._setup_seconds, self._handling_seconds = setup_seconds, handling_seconds
        self._prepared = self._polling = False
        self._poll_until = 0.0

    @property
    def state(self) -> State:
        """State of the life cycle."""
        return self._life.state

    @property
    def work(self) -> ev.WorkAssigned | None:
        """Work unit that the node holds."""
        return self._life.work

    @property
    def step_times(self) -> StepTimes | None:
        """Time of its steps, once it has prepared its model."""
        return self._compute.step_times(self.node_id) if self._prepared else None

    @property
    def step_seconds(self) -> float:
        """Duration of a step of the work in progress; 0 if it computes nothing."""
        work = self._life.work
        if work is None or self._life.state is not _TRAINING:
            return 0.0
        return self._compute_seconds / work.local_steps

    # ------------------------------------------------------------ processes

    def start(self) -> None:
        """Start a process, unless one is running."""
        if not self.running:
            self.running = True
            self.connection.uploaded = partial(self._api.uploaded, self)
            self.connection.before_piece = self.heartbeats.flush
            self.incarnation += 1
            self.attempts = self.failures = 0
            self._prepared, self.held = False, NOTHING
            self.heartbeats.stop()
            if self.incarnation > 1:
                self._life = self._new_life(self.incarnation)
            self.handle(life.Started())

    def crash(self) -> None:
        """End the process without notice."""
        if self.running:
            self.heartbeats.flush()
            self._end()

    def stop(self, reason: str) -> None:
        """Ask the process to finish its work and leave."""
        if self.running:
            self.handle(life.StopRequested(reason))

    def _new_life(self, *process: int) -> LifeCycle[ev.WorkAssigned]:
        draws, settings = KeyedRandom(*self._backoff_key, *process), self._settings
        return LifeCycle(draws, base=settings.backoff_base_seconds, cap=settings.backoff_cap_seconds)

    def _end(self) -> None:
        self.running = False
        self._begin()
        self._end_transfers()
        self.connection.numbers.close()

    # ------------------------------------------------------------ the life cycle

    def handle(self, event: life.Event[ev.WorkAssigned]) -> None:
        """Let the life cycle handle an event, and carry its effects out."""
        for effect in self._life.handle(event):
            _EFFECTS[effect.__class__](self, effect)

    def _begin(self) -> int:
        """End the running operation; return the number of the next one."""
        self._number = number = self._number + 1
        rpc = self.connection.work
        if rpc is not None:
            rpc.close()
        return number

    def _after(self, seconds: float, event: life.Event[ev.WorkAssigned]) -> None:
        """Begin an operation that results in `event` after some time."""
        self._time.at(self._time.clock.now + seconds, self._expire, self._begin(), event)

    def _expire(self, number: int, event: life.Event[ev.WorkAssigned]) -> None:
        if number == self._number:
            for effect in self._life.handle(event):  # as `handle`
                _EFFECTS[effect.__class__](self, effect)

    def _call(self, nbytes: int, messages: int, arrived: Arrived) -> SimulatedRpc:
        """Begin an operation by an RPC; `arrived` runs when its request is at the coordinator."""
        self._number += 1
        connection = self.connection
        if connection.work is not None:
            connection.work.close()
        if self.heartbeats.next_at <= connection.clock.now:
            self.heartbeats.flush()
        rpc = connection.call(self._on_rpc_failed)
        rpc.send(UP, nbytes, messages, arrived)
        return rpc

    def _call_beside(self, nbytes: int, arrived: Arrived) -> SimulatedRpc:
        """Begin an operation by a small RPC, which never waits behind a transfer."""
        self._begin()
        self.heartbeats.flush()
        rpc = self.connection.call_beside(self._on_rpc_failed)
        rpc.send(UP, nbytes, 1, arrived)
        return rpc

    def _on_rpc_failed(self, _: SimulatedRpc) -> None:
        self.attempts += 1
        self.failures += 1
        self.handle(_RPC_FAILED)

    def reply(
        self,
        rpc: SimulatedRpc,
        meaning: life.Event[ev.WorkAssigned],
        messages: int = 1,
        nbytes: int = message_sizes.REPLY_BYTES,
    ) -> None:
        """Let the coordinator reply; `meaning` is handled when the reply has arrived."""
        rpc.about = meaning
        rpc.send(DOWN, nbytes, messages, self._on_reply)

    def reject(self, rpc: SimulatedRpc, error: HyperGPUError) -> None:
        """Let the coordinator reply with an error."""
        self.reply(rpc, life.Failed(error), messages=0)

    def _on_reply(self, rpc: SimulatedRpc) -> None:
        rpc.close()
        self.attempts += 1
        for effect in self._life.handle(rpc.about):  # as `handle`
            _EFFECTS[effect.__class__](self, effect)

    def _report_download(self) -> None:
        transfer, self.connection.downloaded = self.connection.downloaded, None
        if transfer is not None:
            self._api.downloaded(self, transfer)

    # ------------------------------------------------------------ joining

    def _register(self, _: life.Register) -> None:
        self._call_beside(message_sizes.REGISTER_BYTES, self._on_register_arrived)

    def _on_register_arrived(self, rpc: SimulatedRpc) -> None:
        self._api.register(self, rpc)

    def send_registered(self, rpc: SimulatedRpc) -> None:
        """Let the coordinator reply to Register with the membership."""
        self.reply(rpc, _REGISTERED, nbytes=message_sizes.REGISTERED_BYTES)

    def _prepare(self, _: life.Prepare) -> None:
        if self._prepared:
            self.handle(life.Prepared(announce=False))
            return
        self.heartbeats.start()
        self._time.at(self._time.clock.now + self._setup_seconds, self._on_prepared, self._begin())

    def _on_prepared(self, number: int) -> None:
        if number == self._number:
            self._prepared = True
            self.handle(life.Prepared(announce=True))  # the largest batch and the identity of the task

    # ------------------------------------------------------------ pulling

    def _pull(self, _: life.Pull) -> None:
        self._end_transfers()
        self._call(message_sizes.REQUEST_BYTES, 1, self._on_pull_arrived)
        self._poll_until = self._time.clock.now + self._settings.pull_wait_seconds
        if not self._polling:  # one timer for all polls, since few reach their end
            self._polling = True
            self._time.at(self._poll_until, self._on_poll_timer)

    def _on_pull_arrived(self, rpc: SimulatedRpc) -> None:
        self._report_download()
        self._api.pull(self, rpc)

    def _on_poll_timer(self) -> None:
        if self._time.now < self._poll_until:
            self._time.at(self._poll_until, self._on_poll_timer)
            return
        self._polling = False
        rpc = self.connection.work
        if rpc is not None and self._api.end_pull(self, rpc):
            self.reply(rpc, _NO_WORK, messages=0)

    def send_work(
        self, work: ev.WorkAssigned, rpc: SimulatedRpc, sending: Sending, payload: Payload | None = None
    ) -> None:
        """Let the coordinator reply to PullWork with a work unit and its parameters.

        Both travel as one message, so the node is told of the work now and not one latency later.
        """
        self._life.handle(life.WorkAnnounced(work))
        payload_bytes = self._payload_bytes(sending.codec, sending.fragments)
        nbytes, messages = message_sizes.transfer(payload_bytes)
        if not sending.base and not sending.fragments:
            self.held = NOTHING  # what arrives overwrites what is held
        self._api.begin_download(self, message_sizes.ORDER_BYTES + nbytes)
        arrived: Arrived = partial(self._on_work_arrived, sending, payload)
        if sending.background:
            arrived = self._expect_in_background(work, rpc, sending, payload)
        count = work.connections.down
        if count > 1 and (count := useful_connections(count, payload_bytes)) > 1:
            striped = StripedRpc(rpc, DOWN, payload_bytes, message_sizes.ORDER_BYTES)
            striped.about = life.WorkReceived(work)
            striped.share(count, arrived)
            rpc = striped
        else:
            rpc.about = life.WorkReceived(work)
            rpc.send(DOWN, message_sizes.ORDER_BYTES + nbytes, messages, arrived)
        if sending.background:
            self.connection.leave_in_background(rpc)

    def _on_work_arrived(self, sending: Sending, payload: Payload | None, rpc: SimulatedRpc) -> None:
        self.held = after(self.held, sending)
        self._api.received(self, sending, payload)
        self._on_reply(rpc)

    # ------------------------------------------------------------ transfers beside the training

    def _end_transfers(self) -> None:
        if self.connection.background:
            self.connection.end_background()
        self._transfers = WorkTransfers()

    def _expect_in_background(
        self, work: ev.WorkAssigned, rpc: SimulatedRpc, sending: Sending, payload: Payload | None
    ) -> Arrived:
        """Begin the work when its order has arrived, and return what handles the arrival of its parameters."""
        transfers = self._transfers = WorkTransfers(is_background=True, is_downloading=True)
        rpc.failed = partial(self._on_download_failed, transfers)
        order_at = self._time.clock.now + self.connection.link.one_way_seconds(DOWN, rpc.link_rpc)
        self._time.at(order_at, self._expire, self._number, life.WorkReceived(work))
        return partial(self._on_download_arrived, transfers, sending, payload)

    def _on_download_arrived(
        self, transfers: WorkTransfers, sending: Sending, payload: Payload | None, rpc: SimulatedRpc
    ) -> None:
        rpc.close()
        self.attempts += 1
        if transfers is self._transfers:
            transfers.is_downloading = False
            self.held = after(self.held, sending)
            self._api.received(self, sending, payload)
            self._end_training(transfers)

    def _on_download_failed(self, transfers: WorkTransfers, rpc: SimulatedRpc) -> None:
        if transfers is not self._transfers:
            return
        if self._life.state is not _TRAINING:  # the order had not arrived
            self._begin()
            self._on_rpc_failed(rpc)
            return
        self.attempts += 1
        self.failures += 1
        transfers.is_downloading, transfers.download_failed = False, True
        self._end_training(transfers)

    def _on_trained(self, number: int) -> None:
        if number == self._number:
            self._transfers.is_trained = True
            self._end_training(self._transfers)

    def _end_training(self, transfers: WorkTransfers) -> None:
        """End the training when its parameters have arrived, or cannot."""
        if transfers.is_trained and not transfers.is_downloading:
            transfers.is_trained = False
            self.handle(_RPC_FAILED if transfers.download_failed else _TRAINED)

    def _send_ahead(self, work: ev.WorkAssigned) -> None:
        """Send the update of work that begins, while its figures are not known."""
        transfers, nbytes = self._transfers, self._payload_bytes(work.codecs.update, work.fragments)
        self.heartbeats.flush()
        rpc = self.connection.call(partial(self._on_ahead_failed, transfers, work))
        arrived = partial(self._on_ahead_arrived, transfers, work, nbytes)
        count = useful_connections(work.connections.up, nbytes)
        if count > 1:
            rpc = StripedRpc(rpc, UP, nbytes, message_sizes.HEADER_BYTES)
            rpc.share(count, arrived)
        else:
            in_chunks, messages = message_sizes.transfer(nbytes)
            rpc.send(UP, message_sizes.HEADER_BYTES + in_chunks, messages, arrived)
        self._offer(work, rpc)
        self.connection.leave_in_background(rpc)
        transfers.is_uploading = True

    def _on_ahead_arrived(
        self, transfers: WorkTransfers, work: ev.WorkAssigned, nbytes: int, rpc: SimulatedRpc
    ) -> None:
        self._api.sent_ahead(self, work, nbytes)
        replied = partial(self._on_ahead_replied, transfers)
        rpc.send(DOWN, message_sizes.REPLY_BYTES, 1, replied)

    def _on_ahead_replied(self, transfers: WorkTransfers, rpc: SimulatedRpc) -> None:
        rpc.close()
        self.attempts += 1
        transfers.is_uploading, transfers.is_sent = False, True
        self._push_rest(transfers)

    def _on_ahead_failed(self, transfers: WorkTransfers, work: ev.WorkAssigned, rpc: SimulatedRpc) -> None:
        self.attempts += 1
        self.failures += 1
        if not self._api.is_over(work):
            self._api.push_broke(self, work, rpc.arrived_payload_bytes(message_sizes.HEADER_BYTES))
        transfers.is_uploading, transfers.upload_failed = False, True
        self._push_rest(transfers)

    def _push_rest(self, transfers: WorkTransfers) -> None:
        """Push what is left, if the node waited for the end of the upload."""
        work = self._life.work
        if transfers is self._transfers and transfers.pushes and work is not None:
            self._push(life.Push(work, 0))

    def _waits_for_upload(self, work: ev.WorkAssigned) -> bool:
        """Return whether a push has to wait: for the upload that goes on, or to know what has arrived of it."""
        transfers = self._transfers
        transfers.pushes = transfers.is_uploading
        if transfers.upload_failed:
            transfers.upload_failed = False
            self._ask_progress(life.AskProgress(work))
            return True
        return transfers.is_uploading

    # ------------------------------------------------------------ working

    def _train(self, effect: life.Train[ev.WorkAssigned]) -> None:
        work, now = effect.work, self._time.clock.now
        steps = LocalSteps(self._step, work.local_steps, work.batch_size, work.local_optimizer)
        seconds = self._compute.seconds(self.node_id, steps, now)
        self._step += work.local_steps
        self._compute_seconds = seconds
        done_at = now + self._handling_seconds + seconds
        if self._transfers.is_background:
            self._time.at(done_at, self._on_trained, self._begin())
            self._api.begun(work)
            self._send_ahead(work)
        else:
            self._time.at(done_at, self._expire, self._begin(), _TRAINED)

    def _push(self, effect: life.Push[ev.WorkAssigned]) -> None:
        work, offset, transfers = effect.work, effect.offset, self._transfers
        self._api.computed(work)
        if transfers.is_background and self._waits_for_upload(work):
            return
        transfers.offset = offset
        if transfers.is_sent or self._api.is_over(work):
            transfers.is_sent = False
            nbytes, messages = 0, 1  # the coordinator replies when it has the header
        else:
            left, count = self._payload_bytes(work.codecs.update, work.fragments) - offset, work.connections.up
            if count > 1 and (count := useful_connections(count, left)) > 1:
                self._push_over_several(work, left, count)
                return
            nbytes, messages = message_sizes.transfer(left)
        rpc = self._call(message_sizes.HEADER_BYTES + nbytes, messages, partial(self._on_push_arrived, nbytes))
        rpc.about = work
        rpc.failed = self._on_push_failed
        if nbytes:
            self._offer(work, rpc)

    def _offer(self, work: ev.WorkAssigned, rpc: SimulatedRpc) -> None:
        self._api.offer(work, self._time.clock.now + self.connection.link.one_way_seconds(UP, rpc.link_rpc))

    def _push_over_several(self, work: ev.WorkAssigned, nbytes: int, connections: int) -> None:
        self._begin()
        self.heartbeats.flush()
        call = self.connection.call(self._on_push_failed)
        rpc = StripedRpc(call, UP, nbytes, message_sizes.HEADER_BYTES)
        rpc.about = work
        rpc.share(connections, partial(self._on_push_arrived, nbytes))
        self._offer(work, rpc)

    def _on_push_arrived(self, nbytes: int, rpc: SimulatedRpc) -> None:
        self._report_download()
        self._api.push(self, rpc.about, self._compute_seconds, rpc, nbytes=nbytes)

    def _on_push_failed(self, rpc: SimulatedRpc) -> None:
        work = self._life.work
        if work is not None and rpc.about is work:  # before the reply
            arrived = rpc.arrived_payload_bytes(message_sizes.HEADER_BYTES)
            self._api.push_broke(self, work, self._transfers.offset + arrived)
        self._on_rpc_failed(rpc)

    def send_verdict(self, rpc: SimulatedRpc) -> None:
        """Let the coordinator reply to PushUpdate that it needs no more of the update."""
        self.reply(rpc, _PUSHED)

    def _ask_progress(self, effect: life.AskProgress[ev.WorkAssigned]) -> None:
        self._call_beside(message_sizes.REQUEST_BYTES, self._on_progress_asked).about = effect.work

    def _on_progress_asked(self, rpc: SimulatedRpc) -> None:
        self.reply(rpc, self._api.progress(rpc.about))

    def _return(self, effect: life.Return[ev.WorkAssigned]) -> None:
        rpc = self._call_beside(message_sizes.REQUEST_BYTES, self._on_return_arrived)
        rpc.about = effect
        rpc.failed = self._on_return_failed

    def _on_return_arrived(self, rpc: SimulatedRpc) -> None:
        effect: life.Return[ev.WorkAssigned] = rpc.about
        self._api.return_work(self, effect.work, effect.kind, effect.detail)
        self.reply(rpc, life.Returned())

    def _on_return_failed(self, _: SimulatedRpc) -> None:
        self.attempts += 1
        self.failures += 1
        self.handle(life.Returned())  # the coordinator notices at its deadline

    # ------------------------------------------------------------ waiting and leaving

    def _back_off(self, effect: life.BackOff) -> None:
        self._after(effect.seconds, _BACKOFF_EXPIRED)

    def _await_next_run(self, _: life.AwaitNextRun) -> None:
        self._after(self.heartbeats.period_seconds, _NO_WORK)

    def _start_grace(self, _: life.StartGrace) -> None:
        due = self._time.clock.now + self._settings.grace_seconds
        self._time.at(due, self._on_grace_expired, self.incarnation)

    def _on_grace_expired(self, incarnation: int) -> None:
        if self.running and self.incarnation == incarnation:
            self.handle(life.GraceExpired())

    def _leave(self, effect: life.Leave) -> None:
        self._call_beside(message_sizes.REQUEST_BYTES, self._on_leave_arrived).about = effect.reason

    def _on_leave_arrived(self, rpc: SimulatedRpc) -> None:
        self._api.leave(self, rpc.about)
        self.reply(rpc, life.Left())

    def _exit(self, _: life.Exit) -> None:
        self._end()


_EFFECTS: Final[dict[type, Callable[[SimulatedNode, Any], None]]] = {
    life.Register: SimulatedNode._register,
    life.Prepare: SimulatedNode._prepare,
    life.Pull: SimulatedNode._pull,
    life.Train: SimulatedNode._train,
    life.Push: SimulatedNode._push,
    life.AskProgress: SimulatedNode._ask_progress,
    life.Return: SimulatedNode._return,
    life.BackOff: SimulatedNode._back_off,
    life.AwaitNextRun: SimulatedNode._await_next_run,
    life.StartGrace: SimulatedNode._start_grace,
    life.Leave: SimulatedNode._leave,
    life.Exit: SimulatedNode._exit,
}
