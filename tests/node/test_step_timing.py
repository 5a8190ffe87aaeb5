"""Step times of a real device."""

from hypergpu.common.step_times import StepTimes
from hypergpu.node.step_timing import quick_step_times


class Device:
    """Device that takes a known time, of which the first pass on each batch is slow."""

    def __init__(self, seconds_per_step: float, seconds_per_sample: float) -> None:
        self.times = StepTimes(seconds_per_step, seconds_per_sample)
        self.batches: list[int] = []

    def time_step(self, samples: int) -> float:
        self.batches.append(samples)
        return self.times.seconds(samples) * (2.0 if self.batches.count(samples) == 1 else 1.0)


def test_the_fastest_passes_over_two_batches_give_the_times() -> None:
    device = Device(0.01, 0.0001)
    found = quick_step_times(device.time_step, 1000)
    assert found is not None
    assert (round(found.seconds_per_step, 9), round(found.seconds_per_sample, 9)) == (0.01, 0.0001)
    assert set(device.batches) == {16, 64}


def test_a_slow_device_starts_without() -> None:
    device = Device(1.0, 0.01)
    assert quick_step_times(device.time_step, 1000) is None
    assert len(device.batches) == 1


def test_few_samples_are_enough_and_too_few_are_not_tried() -> None:
    device = Device(0.01, 0.0001)
    assert quick_step_times(device.time_step, 4) is not None
    assert set(device.batches) == {2, 4}
    assert quick_step_times(device.time_step, 3) is None


def test_a_large_batch_that_takes_no_longer_still_costs_something() -> None:
    found = quick_step_times(lambda _: 0.01, 1000)
    assert found is not None
    assert found.seconds_per_sample > 0
