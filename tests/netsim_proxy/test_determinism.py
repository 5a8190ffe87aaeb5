"""One link model, two drivers: what the proxy did to real traffic, the pure model does again to the same arrivals."""

import contextlib
from typing import Any

import grpc

from hypergpu.netsim_proxy.link.link import Link
from hypergpu.netsim_proxy.link.outcomes import Fail
from hypergpu.netsim_proxy.link.profiles import find_profile

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any], Any]]


class Recorder:
    """A link that notes every question that the proxy asks it, and its answer."""

    def __init__(self, link: Link, calls: Calls) -> None:
        self._link, self._calls = link, calls

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._link, name)
        if name not in {"begin", "connect", "offer"}:
            return asked

        def answer(*args: Any, **kwargs: Any) -> Any:
            out = asked(*args, **kwargs)
            self._calls.append((name, args, kwargs, out))
            return out

        return answer


def record(proxy: Any, node_id: str, calls: Calls) -> None:
    port = proxy.ports.of(node_id)
    port.link = Recorder(port.link, calls)


def replay(calls: Calls, seed: int) -> list[Any]:
    link, out = Link("node_1", find_profile("unstable"), seed), []
    rpcs: dict[int, Any] = {}
    for name, args, kwargs, answer in calls:
        if name == "offer":
            now, direction, nbytes, rpc = args
            out.append(link.offer(now, direction, nbytes, rpcs[id(rpc)], **kwargs))
        else:
            rpcs[id(answer)] = getattr(link, name)(*args, **kwargs)
    return out


def test_same_arrivals_same_deliveries(start_proxy: Any, connect: Any) -> None:
    proxy = start_proxy("unstable", seed=11)
    calls: Calls = []
    proxy.call(record, proxy, "node_1", calls)
    client, other = connect(proxy.address, "node_1"), connect(proxy.address, "node_2")
    futures = [c.Echo.future(bytes(100 * n)) for n in range(30) for c in (client, other)]
    for future in futures:
        with contextlib.suppress(grpc.RpcError):
            future.result()
    with contextlib.suppress(grpc.RpcError):
        sum(map(len, client.Produce(b"20 10000")))
    answers = [out for name, _, _, out in calls if name == "offer"]
    assert any(isinstance(answer, Fail) for answer in answers) and len(answers) > 60
    assert replay(calls, seed=11) == answers
    assert replay(calls, seed=12) != answers
