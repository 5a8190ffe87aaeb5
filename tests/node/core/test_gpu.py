import pytest

from hypergpu.common.errors import InvalidInput, OutOfMemory, UnknownName
from hypergpu.node.core.compute import ComputeModel
from hypergpu.node.core.gpu import GIB, PRESETS, GPUSpecs, specs_from
from hypergpu.node.core.memory import MemoryModel, require_batch_size


@pytest.mark.parametrize("name", ["T4", "V100", "A100", "H100", "RTX 3090", "rtx-4090", "rtx3090", "Laptop CPU"])
def test_presets_by_the_names_that_people_write(name: str) -> None:
    assert specs_from(name) in PRESETS.values()


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'A100'"):
        specs_from("A10")


def test_specs_from_a_mapping() -> None:
    assert specs_from({"memory_gb": 8, "compute_capability": (7, 5), "tflops": 4}) == GPUSpecs(
        "custom", 8 * GIB, 4.0, "7.5"
    )
    assert specs_from({"name": "a100", "memory_mb": 40 * 1024}).memory_bytes == 40 * GIB
    assert specs_from({"name": "a100"}) == PRESETS["A100"]
    assert specs_from(PRESETS["T4"]) is PRESETS["T4"]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"memory": 1}, "did you mean 'memory_"),
        ({"tflops": "fast"}, "fast"),
        ({"memory_gb": 0}, "above 0"),
        ({"tflops": float("nan")}, "above 0"),
        (7, "int"),
    ],
)
def test_specs_that_do_not_hold(value: object, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        specs_from(value)  # type: ignore[arg-type]  # the point


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    memory, specs = MemoryModel(100 << 20, 3 << 20), PRESETS["T4"]
    largest = memory.largest_batch(specs)
    assert memory.bytes(largest, specs) <= specs.memory_bytes < memory.bytes(largest + 1, specs)
    memory.require(largest, specs)
    with pytest.raises(OutOfMemory, match=f"the largest that fits is {largest}") as caught:
        memory.require(largest + 1, specs)
    assert caught.value.largest_batch == largest


def test_a_model_that_does_not_fit_at_all() -> None:
    with pytest.raises(OutOfMemory, match="not even the model fits"):
        MemoryModel(10 * GIB, 1.0).require(1, PRESETS["T4"])


@pytest.mark.parametrize("size", [0, -3, 1.5, True, "8"])
def test_batch_sizes_that_are_none(size: object) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        require_batch_size(size)  # type: ignore[arg-type]  # the point


def _model(card: str, spread: float = 0.0, node: str = "n") -> ComputeModel:
    return ComputeModel(
        PRESETS[card], seconds_per_step=0.001, seconds_per_sample=0.0001, spread=spread, seed=3, node_id=node
    )


def test_a_slow_card_is_slower_in_proportion() -> None:
    t4, h100 = (_model(card).step_seconds(0, 32, 0.0) for card in ("T4", "H100"))
    assert t4 / h100 == pytest.approx(66.9 / 8.1)
    assert _model("RTX-4090").step_seconds(0, 32, 0.0) == pytest.approx(0.0042)
    t4, h100 = (_model(card).step_seconds(0, 32, 0.0, 0.003) for card in ("T4", "H100"))
    assert t4 / h100 == pytest.approx(66.9 / 8.1), "the optimizer is slower too"
    assert _model("RTX-4090").step_seconds(0, 32, 0.0, 0.003) == pytest.approx(0.0072)


def test_the_spread_is_keyed_and_leaves_the_mean() -> None:
    one, same, other = (_model("T4", 0.3, node) for node in ("a", "a", "b"))
    times = [one.step_seconds(i, 32, 0.0) for i in range(4000)]
    assert times == [same.step_seconds(i, 32, 0.0) for i in range(4000)]
    assert times[0] != other.step_seconds(0, 32, 0.0)
    assert sum(times) / len(times) == pytest.approx(_model("T4").step_seconds(0, 32, 0.0), rel=0.03)


def test_throttling_ramps_and_straggling_does_not() -> None:
    model = _model("T4")
    base = model.step_seconds(0, 32, 0.0)
    model.throttle(100.0, duration_seconds=50.0, factor=2.0)

    def ratio(now: float) -> float:
        return model.step_seconds(0, 32, now) / base

    assert [ratio(t) for t in (99.0, 102.5, 125.0, 147.5, 150.0)] == pytest.approx([1, 1.5, 2, 1.5, 1])
    model.straggle(120.0, duration_seconds=1.0, factor=5.0)
    assert [ratio(t) for t in (119.9, 120.0, 121.0)] == pytest.approx([2, 10, 2])
    model.recover()
    assert ratio(120.5) == pytest.approx(1)
    with pytest.raises(InvalidInput, match="factor"):
        model.throttle(0.0, factor=0.5)
