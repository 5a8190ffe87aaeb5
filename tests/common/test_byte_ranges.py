"""Sets of byte ranges, against plain sets of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from hypergpu.common.byte_ranges import ByteRange, ByteRanges

PAIRS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)), max_size=12)


def test_ranges_that_overlap_or_touch_become_one() -> None:
    ranges = ByteRanges([(10, 20), (30, 40), (20, 25)])
    assert list(ranges) == [(10, 25), (30, 40)]
    assert ranges.add(24, 30) == 5
    assert list(ranges) == [(10, 40)]
    assert (len(ranges), ranges.total) == (1, 30)


def test_removing_the_middle_leaves_two_ranges() -> None:
    ranges = ByteRanges([(0, 100)])
    assert ranges.remove(40, 60) == 20
    assert list(ranges) == [(0, 40), (60, 100)]
    assert ranges.remove(50, 60) == 0
    assert ranges.remove(39, 61) == 2


def test_pieces_are_taken_from_the_front() -> None:
    ranges = ByteRanges([(4, 10), (20, 22)])
    assert ranges.take(4) == ByteRange(4, 8)
    assert ranges.take(4) == ByteRange(8, 10)
    assert ranges.take(4) == ByteRange(20, 22)
    assert ranges.take(4) is None
    assert not ranges


@given(PAIRS, st.integers(0, 40), st.integers(0, 40))
def test_they_behave_as_sets_of_numbers(changes: list[tuple[bool, int, int]], low: int, high: int) -> None:
    ranges, numbers = ByteRanges(), set[int]()
    for is_added, start, end in changes:
        part = set(range(start, end))
        if is_added:
            assert ranges.add(start, end) == len(part - numbers)
            numbers |= part
        else:
            assert ranges.remove(start, end) == len(part & numbers)
            numbers -= part
        assert ranges.total == len(numbers)
    assert {byte for start, end in ranges for byte in range(start, end)} == numbers
    assert all(before.end < after.start for before, after in zip(ranges, list(ranges)[1:], strict=False))
    inside = {byte for start, end in ranges.within(low, high) for byte in range(start, end)}
    assert inside == numbers & set(range(low, high))
