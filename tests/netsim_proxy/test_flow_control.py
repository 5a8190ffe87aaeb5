"""What a peer may send of what its reader grants."""

from hypothesis import given
from hypothesis import strategies as st

from hypergpu.netsim_proxy.relay.flow_control import FIRST_WINDOW_BYTES, WindowLimiter


def test_a_link_without_a_limit_holds_nothing_back() -> None:
    allowance = WindowLimiter()
    assert allowance.increase(4 << 20) == 4 << 20
    assert allowance.used(1 << 20) == 0


def test_what_is_beyond_the_limit_follows_as_the_peer_uses_what_it_has() -> None:
    allowance = WindowLimiter()
    assert allowance.increase(1_000_000, limit=100_000) == 100_000 - FIRST_WINDOW_BYTES
    assert allowance.used(30_000, limit=100_000) == 30_000
    assert allowance.used(30_000, limit=10_000) == 0  # the link has become slow
    assert allowance.used(65_000, limit=10_000) == 5_000
    assert allowance.increase(1, limit=float("inf")) > 900_000  # and fast again


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 200_000), st.sampled_from([16_384.0, 100_000.0, float("inf")])),
        max_size=60,
    )
)
def test_a_peer_never_gets_more_than_its_reader_granted_and_never_starves(steps: list[tuple[bool, int, float]]) -> None:
    allowance, window, granted, passed = WindowLimiter(), FIRST_WINDOW_BYTES, 0, 0
    for is_grant, nbytes, limit in steps:
        if is_grant:
            granted += nbytes
            more = allowance.increase(nbytes, limit)
        else:
            sent = min(nbytes, window)
            window -= sent
            more = allowance.used(sent + 9, limit)  # with the header of its frame
        window += more
        passed += more
        assert more >= 0 and passed <= granted
        assert window > 0 or passed == granted, "something is kept back from a peer that has nothing left"
