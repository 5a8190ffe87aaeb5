"""Parts of the time of a round's nodes, and the share of it in which they compute."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hypergpu.coordinator.core.rounds.events import CloseRound
from hypergpu.coordinator.core.rounds.membership import Membership


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Seconds of one node or of several, in one round or in several. The parts add up to nodes × duration of the round.

    The coordinator sees when it assigns the work, when the node offers the update, and when it has arrived. How long
    the node has computed in between, the node tells.
    """

    download: float = 0.0
    """From the assignment to the offer of the update, without computing: parameters, latency, retries."""
    compute: float = 0.0
    """Local steps."""
    upload: float = 0.0
    """From the offer of the update until it has arrived."""
    wait: float = 0.0
    """The rest of a round to which the node contributed: before its assignment, and for other nodes."""
    lost: float = 0.0
    """Rounds to which the node did not contribute."""

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.download + self.compute + self.upload + self.wait + self.lost

    @property
    def utilisation(self) -> float | None:
        """Share of the time in which nodes computed for updates that arrived in time; None without any time."""
        return self.compute / self.total if self.total > 0.0 else None


def node_time(
    round_seconds: float,
    *,
    success: bool,
    compute_seconds: float = 0.0,
    waiting_seconds: float = 0.0,
    upload_seconds: float = 0.0,
) -> NodeTime:
    """Return the parts of one node's time in one round; figures that a node reports are bounded by what was measured.

    Args:
        round_seconds: Duration of the round.
        success: Whether the node contributed.
        compute_seconds: Seconds of computing, as the node reports them.
        waiting_seconds: Seconds from the assignment to the accepted update, without computing.
        upload_seconds: Seconds from the offer of the update to its acceptance.
    """
    if not success:
        return NodeTime(lost=round_seconds)
    upload = min(upload_seconds, waiting_seconds, round_seconds)
    download = min(waiting_seconds - upload, round_seconds - upload)
    compute = min(compute_seconds, round_seconds - upload - download)
    return NodeTime(download, compute, upload, round_seconds - upload - download - compute)


def total_time(times: Iterable[NodeTime]) -> NodeTime:
    """Return the sums of each part."""
    download = compute = upload = wait = lost = 0.0
    for each in times:
        download += each.download
        compute += each.compute
        upload += each.upload
        wait += each.wait
        lost += each.lost
    return NodeTime(download, compute, upload, wait, lost)


def times_of_nodes(closed: CloseRound) -> Iterator[tuple[str, NodeTime]]:
    """Yield each node of a closed round with the parts of its time."""
    for each in closed.contributions:
        time = node_time(
            closed.seconds,
            success=each.success,
            compute_seconds=each.compute_seconds,
            waiting_seconds=each.waiting_seconds,
            upload_seconds=each.upload_seconds,
        )
        yield each.node, time


def time_of_round(closed: CloseRound) -> NodeTime:
    """Return the parts of the time of all nodes in a closed round."""
    return total_time(time for _, time in times_of_nodes(closed))


def count_time(closed: CloseRound, members: Membership) -> float | None:
    """Add a closed round to the time of its nodes; return the share of it in which they computed."""
    for node, time in times_of_nodes(closed):
        member = members.get(node)
        if member is not None:
            member.computed_seconds += time.compute
            member.selected_seconds += time.total
    return time_of_round(closed).utilisation
