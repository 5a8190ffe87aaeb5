"""Connections of a node to its coordinator, made anew where the node's certificate or its authority was renewed."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from hypergpu.common.errors import ConfigError
from hypergpu.common.files import FileWatch
from hypergpu.common.wire import encode_part
from hypergpu.protos import coordinator_pb2 as pb

_SERVICE = "/hypergpu.coordinator.v1.Training/"

log = structlog.get_logger()


class SmallCalls:
    """Calls without transfers, on a connection of their own: on a shared one they would wait behind transfers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.register = channel.unary_unary(
            _SERVICE + "Register", pb.RegisterRequest.SerializeToString, pb.RegisterReply.FromString
        )
        self.heartbeat = channel.unary_unary(
            _SERVICE + "Heartbeat", pb.HeartbeatRequest.SerializeToString, pb.HeartbeatReply.FromString
        )
        self.progress = channel.unary_unary(
            _SERVICE + "GetUploadProgress", pb.WorkId.SerializeToString, pb.UploadProgress.FromString
        )
        self.return_work = channel.unary_unary(
            _SERVICE + "ReturnWork", pb.ReturnWorkRequest.SerializeToString, pb.ReturnWorkReply.FromString
        )
        self.leave = channel.unary_unary(
            _SERVICE + "Leave", pb.LeaveRequest.SerializeToString, pb.LeaveReply.FromString
        )


class TransferConnection:
    """Connection for transfers, with the calls on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.pull = channel.unary_stream(_SERVICE + "PullWork", pb.PullWorkRequest.SerializeToString, bytes)
        self.parameters = channel.unary_stream(
            _SERVICE + "PullParameters", pb.PullParametersRequest.SerializeToString, bytes
        )
        self.push = channel.stream_unary(_SERVICE + "PushUpdate", encode_part, pb.PushUpdateReply.FromString)


class Connections:
    """Connections to one coordinator.

    Args:
        open_channel: makes a channel; raises ConfigError if its certificates cannot be used.
        files: certificates that may be renewed.
    """

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel], files: FileWatch) -> None:
        self._open, self._files = open_channel, files
        self.small = SmallCalls(open_channel())
        self._transfers: list[TransferConnection] = []
        self._former: list[Any] = []
        """Channels with the certificate before the present one: calls on them may go on."""

    def for_transfers(self, count: int) -> list[TransferConnection]:
        """Return the first `count` connections for transfers, opened on first use."""
        while len(self._transfers) < count:
            self._transfers.append(TransferConnection(self._open()))
        return self._transfers[:count]

    async def renew(self) -> None:
        """Make new connections where certificates were renewed; calls that go on keep theirs."""
        if not self._files.have_changed():
            return
        try:
            small = SmallCalls(self._open())
        except ConfigError as error:
            log.warning("changed certificates cannot be used; the former ones stay in use", reason=str(error))
            return
        former, self._former = self._former, self._channels()
        self.small, self._transfers = small, []
        await asyncio.gather(*(each.close() for each in former))
        log.info("certificates were read again")

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(each.close() for each in (*self._former, *self._channels())))

    def _channels(self) -> list[Any]:
        return [self.small.channel, *(each.channel for each in self._transfers)]
