"""What probes are told."""

import pytest

from hypergpu.netsim_proxy.api.health import Health


class Hands:
    """A clock that stands where it was put."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_loop_that_stands_still_is_not_healthy() -> None:
    clock = Hands()
    health = Health(clock)
    health.is_accepting = True
    clock.now += 5.0
    assert (health.healthz().status, health.readyz().status) == (200, 200)
    clock.now += 0.001
    assert (health.healthz().status, health.readyz().status) == (503, 503)
    assert health.healthz().body == b"the event loop has not run for 5 s\n"


@pytest.mark.parametrize(("is_accepting", "status"), [(False, 503), (True, 200)])
async def test_only_a_proxy_that_accepts_clients_is_ready(is_accepting: bool, status: int) -> None:
    health = Health()
    health.is_accepting = is_accepting
    assert (health.healthz().status, health.readyz().status) == (200, status)
