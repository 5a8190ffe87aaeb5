"""Client of a running cluster: the coordinator's control service and the proxy's control API."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from hypergpu.common import rpc
from hypergpu.common.address import split_address
from hypergpu.common.errors import HyperGPUError, InvalidInput, TlsError, Unavailable, UnknownName
from hypergpu.common.text import natural_key
from hypergpu.common.tls import Tls
from hypergpu.discovery import HOW_TO_START, Cluster
from hypergpu.protos import coordinator_pb2 as pb
from hypergpu.protos import coordinator_pb2_grpc, netsim_pb2_grpc
from hypergpu.protos import netsim_pb2 as net

Method = Callable[..., Any]
_TIMEOUT_SECONDS = 10.0


class Client:
    """Client of a cluster. Failures raise the errors of `hypergpu.common.errors`."""

    def __init__(
        self,
        cluster: Cluster,
        coordinator: grpc.aio.Channel | None,
        proxy: grpc.aio.Channel | None,
        *,
        tls: Tls | None = None,
        proxy_tls: Tls | None = None,
    ) -> None:
        self.cluster = cluster
        self._control = coordinator_pb2_grpc.ControlStub(coordinator) if coordinator else None
        self._netsim = netsim_pb2_grpc.NetsimStub(proxy) if proxy else None
        self._tls, self._proxy_tls = tls, proxy_tls

    @property
    def control(self) -> Any:
        """Stub of the coordinator's control service.

        Raises:
            InvalidInput: only the address of a proxy is known.
        """
        if self._control is None:
            raise InvalidInput("this needs the coordinator: give --coordinator HOST:PORT")
        return self._control

    @property
    def has_proxy(self) -> bool:
        """True if the address of a proxy is known."""
        return self._netsim is not None

    @property
    def netsim(self) -> Any:
        """Stub of the proxy's control API.

        Raises:
            InvalidInput: no proxy is known.
        """
        if self._netsim is None:
            raise InvalidInput("no netsim proxy is known: give --proxy HOST:PORT")
        return self._netsim

    async def call(self, method: Method, request: Message) -> Any:
        """Make a unary call and return the reply."""
        try:
            return await method(request, metadata=self._metadata(method), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise await self._explain(method, error) from error

    async def stream(
        self, method: Method, request: Message, *, idle_seconds: float | None = None
    ) -> AsyncIterator[Any]:
        """Return the replies of a streaming call, until either side ends it, or none came for `idle_seconds`."""
        call = method(request, metadata=self._metadata(method))
        try:
            while True:
                reply = await asyncio.wait_for(call.read(), idle_seconds)
                if reply is grpc.aio.EOF:
                    return
                yield reply
        except TimeoutError:
            return
        except grpc.RpcError as error:
            raise await self._explain(method, error) from error
        finally:
            call.cancel()

    async def nodes(self) -> list[pb.NodeInfo]:
        """Return the nodes that the coordinator knows, by name."""
        reply = await self.call(self.control.ListNodes, pb.ListNodesRequest())
        return sorted(reply.nodes, key=lambda node: natural_key(node.node_id))

    async def links(self) -> list[net.LinkInfo]:
        """Return the links that the proxy knows, by name."""
        reply = await self.call(self.netsim.ListLinks, net.ListLinksRequest())
        return sorted(reply.links, key=lambda link: natural_key(link.node_id))

    async def check_nodes(self, names: list[str]) -> None:
        """Raise UnknownName for the first of `names` that is neither a node nor a link; "*" means all.

        Without a coordinator, the check is left to the proxy.
        """
        if self._control is None:
            return
        known = {node.node_id for node in await self.nodes()}
        if self.has_proxy:
            known |= {link.node_id for link in await self.links()}
        for name in names:
            if name != "*" and name not in known:
                raise UnknownName("node", name, known)

    def _is_of_proxy(self, method: Method) -> bool:
        return self._netsim is not None and method in vars(self._netsim).values()

    def _metadata(self, method: Method) -> tuple[tuple[str, str], ...]:
        token = self.cluster.token_of_proxy if self._is_of_proxy(method) else self.cluster.token
        return rpc.metadata_for(None, token)

    async def _explain(self, method: Method, error: grpc.RpcError) -> HyperGPUError:
        of_proxy = self._is_of_proxy(method)
        peer, address = ("netsim proxy", self.cluster.proxy) if of_proxy else ("coordinator", self.cluster.coordinator)
        option = "--proxy" if of_proxy else "--coordinator"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            found = await rpc.explain_failure(error, address, self._proxy_tls if of_proxy else self._tls)
            if isinstance(found, TlsError):
                return found
            return Unavailable(f"no {peer} answers at {address}: {HOW_TO_START}, or give {option} HOST:PORT")
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return InvalidInput(f"the server at {address} is not a {peer}: give {option} HOST:PORT")
        if error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
            return InvalidInput(
                f"the {peer} at {address} rejects the token: {error.details()}. Give --token or --token-file, or set "
                "HYPERGPU_OPERATOR_TOKEN"
            )
        failure = rpc.error_from(error, peer)
        # The user's own mistake is reported without the address of the server that noticed it.
        return InvalidInput(error.details()) if isinstance(failure, InvalidInput) and error.details() else failure


@asynccontextmanager
async def connect(cluster: Cluster, tls: Tls | None = None, proxy_tls: Tls | None = None) -> AsyncIterator[Client]:
    """Open a client for the duration of the block; it connects with the first call."""
    async with AsyncExitStack() as stack:
        channels = []
        for address, how in ((cluster.coordinator, tls), (cluster.proxy, proxy_tls)):
            if address and not address.startswith("unix:"):
                split_address(address)
            channels.append(await stack.enter_async_context(rpc.open_channel(address, how)) if address else None)
        yield Client(cluster, *channels, tls=tls, proxy_tls=proxy_tls)
