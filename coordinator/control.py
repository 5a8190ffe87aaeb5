"""Control service: status and control of a run for users."""

import time
from collections.abc import AsyncIterator, Iterable

from hypergpu.common.errors import InvalidInput, UnknownName
from hypergpu.common.grpc_server import Context, peer_host
from hypergpu.common.metric import finite
from hypergpu.common.version import package_version
from hypergpu.coordinator import convert
from hypergpu.coordinator.core.adaptation import AdaptationPolicy, AdaptiveOrchestrator
from hypergpu.coordinator.core.overrides import NodeOverride
from hypergpu.coordinator.core.rounds import events as ev
from hypergpu.coordinator.core.rounds.membership import Member
from hypergpu.coordinator.engine import Engine
from hypergpu.coordinator.link_telemetry import LinkTelemetry
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc

_RULES = {
    pb.SetNodeRuleRequest.AUTOMATIC: NodeOverride.AUTOMATIC,
    pb.SetNodeRuleRequest.INCLUDE: NodeOverride.INCLUDE,
    pb.SetNodeRuleRequest.EXCLUDE: NodeOverride.EXCLUDE,
}
_LATEST_DECISIONS = 20


class ControlService(coordinator_pb2_grpc.ControlServicer):
    """Implementation of the Control service in coordinator.proto."""

    def __init__(self, engine: Engine, orchestrator: AdaptiveOrchestrator, links: LinkTelemetry) -> None:
        self._engine = engine
        self._orchestrator = orchestrator
        self._links = links

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.Status:  # noqa: N802
        """Return the status of the run."""
        del request, context
        return await self._status()

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.NodeList:  # noqa: N802
        """Return all nodes, with those that have left."""
        del request, context
        await self._engine.told()
        return pb.NodeList(nodes=self._infos(self._engine.machine.members))

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.RunEvent]:  # noqa: N802
        """Stream run events until the run ends or the client falls too far behind."""
        queue = self._engine.feed.subscribe(request.replay, peer_host(context))
        try:
            while (event := await queue.get()) is not None:
                yield convert.run_event(event)
        finally:
            self._engine.feed.unsubscribe(queue)

    async def Pause(self, request: pb.PauseRequest, context: Context) -> pb.Status:  # noqa: N802
        """Pause the run after the running round."""
        del request, context
        self._engine.dispatch(ev.Pause())
        return await self._status()

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> pb.Status:  # noqa: N802
        """Resume a paused run."""
        del request, context
        self._engine.dispatch(ev.Resume())
        return await self._status()

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.Status:  # noqa: N802
        """End the run."""
        del context
        self._engine.dispatch(ev.Stop(convert.text(request.reason, "reason")))
        return await self._status()

    async def Restart(self, request: pb.RestartRequest, context: Context) -> pb.Status:  # noqa: N802
        """End the run and start a new one in its place."""
        del request
        if not self._engine.stays:
            raise InvalidInput(
                "this coordinator ends with its run: start it with --set=server.stay=true to be able to restart runs"
            )

        def answered(_: object) -> None:
            """Restart only after the reply was sent, since the server ends with the run."""
            self._engine.restart_asked.set()

        context.add_done_callback(answered)  # type: ignore[arg-type]  # the stub wants a protocol that no function meets
        return await self._status()

    async def SetNodeRule(self, request: pb.SetNodeRuleRequest, context: Context) -> pb.NodeInfo:  # noqa: N802
        """Set the user's override for a node."""
        del context
        rule = _RULES.get(request.rule)
        if rule is None:
            raise UnknownName("rule", str(request.rule), [str(rule) for rule in NodeOverride])
        members = self._engine.machine.members
        if members.get(request.node_id) is None:
            raise UnknownName("node", request.node_id[:80], [m.node_id for m in members])
        self._engine.dispatch(ev.OverrideSet(request.node_id, rule))
        (info,) = self._infos([members.require(request.node_id)])
        return info

    async def SetPolicy(self, request: pb.SetPolicyRequest, context: Context) -> pb.Status:  # noqa: N802
        """Change the adaptation policy, starting with the next round."""
        del context
        known = [str(policy) for policy in AdaptationPolicy]
        if request.policy not in known:
            raise UnknownName("policy", request.policy[:80], known)
        self._orchestrator.set_policy(request.policy)
        return await self._status()

    def _infos(self, members: Iterable[Member]) -> list[pb.NodeInfo]:
        machine, infos = self._engine.machine, []
        usefulness = machine.members.usefulness()
        for member in members:
            known = self._links.describe(member.node_id)
            if member.node_id not in machine.members.connected or machine.finished:
                known = {**known, "state": "", "reason": ""}
            infos.append(convert.node_info(member, self._engine, known, usefulness))
        return infos

    async def _status(self) -> pb.Status:
        """Return the status, without what is decided and not on the disk yet."""
        await self._engine.told()
        engine, machine = self._engine, self._engine.machine
        deadline_at = machine.deadline_at
        remaining = None if deadline_at is None else max(0.0, deadline_at - engine.now)
        return pb.Status(
            run_id=engine.run_id,
            state=machine.state,
            task=machine.config.task,
            round=machine.config.shown_round(machine.round),
            rounds=machine.config.rounds,
            loss=finite(machine.loss),
            metric=convert.metric(machine),
            elapsed_seconds=engine.elapsed_seconds,
            nodes_connected=len(machine.members.connected),
            nodes_selected=len(machine.selected),
            policy=self._orchestrator.policy,
            phase=self._orchestrator.phase,
            round_seconds=machine.last_round_seconds,
            compute_utilisation=machine.round_state.latest.utilisation,
            spent=machine.members.spent,
            decisions=[convert.decision(d) for d in list(machine.decisions)[:_LATEST_DECISIONS]],
            waiting_for=engine.waiting_for,
            deadline_seconds=remaining,
            version=package_version(),
            problems=engine.problems,
            unix_seconds=time.time(),
        )
