"""Global model: the parameters, the mean of the running round, and the optimizer step between rounds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from hypergpu.common.codecs import PayloadFormat, PayloadReader, find_codec
from hypergpu.common.config.aggregation import AggregationConfig
from hypergpu.common.config.training import TrainingConfig
from hypergpu.common.fragments import Fragments
from hypergpu.common.tensors import Flat, Manifest, Payload
from hypergpu.coordinator.core.model.aggregation import Parts, is_finite, norm, pieces, staleness_weight
from hypergpu.coordinator.core.model.optimizer import Optimizer, Sgd, make_optimizer
from hypergpu.coordinator.core.model.robust_mean import RoundMeans
from hypergpu.coordinator.core.model.sketch import WIDTH, Sketch, Sketcher

_FRAGMENT = "fragment_"
PLAIN_MEAN: Final = AggregationConfig()


class GlobalModel:
    """Parameters and state in one flat buffer, with the operations that change them.

    Args:
        manifest: Names and shapes of the tensors in the buffer.
        initial: Parameters followed by state (running statistics), shape (manifest.size,).
        parameter_count: Number of floats that the optimizer changes. The rest is state; the mean change is added to it.
        config: Training settings of the optimizer, and the number of fragments.
        aggregation: How the updates of a round become one.
        secret: Key of the sketches, which nodes must not know.

    Raises:
        InvalidInput: The model has fewer tensors than fragments.
    """

    def __init__(
        self,
        manifest: Manifest,
        initial: Flat,
        parameter_count: int,
        config: TrainingConfig,
        aggregation: AggregationConfig = PLAIN_MEAN,
        *,
        secret: int = 0,
    ) -> None:
        self.manifest = manifest
        self.values: Flat = np.array(initial, np.float32)
        self._spare: Flat = np.empty_like(self.values)
        self._kept: Flat = self.values.copy()
        self._sketcher = Sketcher(secret)
        self._config = config
        self.fragments = Fragments(manifest, parameter_count, config.fragments)
        sizes = [self.fragments.size((each,)) + self.fragments.state_size for each in range(self.fragments.count)]
        self._means = RoundMeans(sizes, aggregation, config.seed)
        self._states: dict[int, Flat] = {}
        """State that the nodes received, by round."""
        self._figures: tuple[tuple[float, float] | None, Sketch | None] = None, None
        """Norms and sketch of the last step."""
        self.step_fault = ""
        """Reason for which the last step was skipped; empty if it was not."""
        self._optimizers = self._new_optimizers()
        """Optimizers by fragment."""

    def another(self, config: TrainingConfig) -> "GlobalModel":
        """Return a model of the same parameters that trains with other settings."""
        return GlobalModel(self.manifest, self.values, self._parameter_count, config)

    def _new_optimizers(self) -> list[Optimizer]:
        return [self._new_optimizer(fragment) for fragment in range(self.fragments.count)]

    def _new_optimizer(self, fragment: int) -> Optimizer:
        return make_optimizer(self._config, self.fragments.size((fragment,)))

    @property
    def _parameter_count(self) -> int:
        """Number of parameters; the rest is state."""
        return self.manifest.size - self.fragments.state_size

    @property
    def is_whole(self) -> bool:
        """True if each round synchronises the whole model."""
        return self.fragments.count == 1

    def payload_format(self, codec: str, fragments: Sequence[int] = ()) -> PayloadFormat:
        """Return the format of payloads of this model, or of some fragments of it, in a codec.

        Raises:
            UnknownName: there is no such codec.
        """
        parameters = self.fragments.size(fragments) if fragments else self._parameter_count
        return PayloadFormat(find_codec(codec), parameters, self.fragments.state_size)

    def update_format(self, codec: str, round_number: int) -> PayloadFormat:
        """Return the format of the updates of a round in a codec.

        Raises:
            UnknownName: there is no such codec.
        """
        return self.payload_format(codec, (self._config.fragment_of(round_number),))

    @property
    def largest_update(self) -> Sequence[int]:
        """Fragment whose updates have the most bytes."""
        return (self.fragments.largest,)

    def norm(self, payload: Payload, codec: str, round_number: int = 0) -> float:
        """Return the Euclidean norm of an encoded update of a round; it is not finite if the update is not.

        Raises:
            ProtocolError: the payload is not in this codec.
        """
        return norm(self._changes(self.update_format(codec, round_number), payload))

    def measure(self, payload: Payload, codec: str, round_number: int = 0) -> tuple[float, Sketch]:
        """Return the norm of an encoded update of a round, and its sketch, in one pass.

        Raises:
            ProtocolError: the payload is not in this codec.
        """
        sketch = np.zeros(WIDTH, np.float32)

        def sketched() -> Parts:
            for start, part in self._changes(self.update_format(codec, round_number), payload):
                self._sketcher.add(sketch, start, part)
                yield start, part

        with np.errstate(over="ignore", invalid="ignore"):
            return norm(sketched()), sketch

    def _changes(self, form: PayloadFormat, payload: Payload) -> Parts:
        """Yield an update as the change that it makes: that of a fragment comes with the values of the state."""
        state = self.values[self._parameter_count :]
        for start, part in PayloadReader(form, payload).read():
            first = start - form.parameters
            yield start, part if self.is_whole or first < 0 else part - state[first : first + len(part)]

    def add(
        self, payload: Payload, codec: str, weight: float, late: tuple[int, int] | None = None, node: str = ""
    ) -> None:
        """Add one update of a node to the mean, decoded in place; `norm` has checked it.

        A late one, with its round and staleness, changes the parameters as it would have then, but less. Of the state,
        the mean is that of the values which the nodes have reached, not of their changes: added to statistics that have
        moved on, a change may lead beyond all of them, and a variance below 0.
        """
        if self._config.deterministic:
            self._means.held.hold(node, payload, codec, weight)
        else:
            self._add(payload, codec, weight, late, node)

    def with_update(self, payload: Payload, codec: str, round_number: int) -> Flat:
        """Return the values after a plain step of one update alone; a gradient counts by the server's rate."""
        fragment = self._config.fragment_of(round_number)
        change = np.empty(self.fragments.size((fragment,)) + self.fragments.state_size, np.float32)
        for start, part in self._changes(self.update_format(codec, round_number), payload):
            change[start : start + len(part)] = part
        if self._config.local_steps == 1:
            change[: self.fragments.size((fragment,))] *= np.float32(-self._optimizers[fragment].rate)
        values = self.values.copy()
        self.fragments.put(self.fragments.take(values, (fragment,)) + change, values, (fragment,))
        return values

    def hold_in(self, allocate: Callable[[int], Payload]) -> None:
        """Let updates that wait for the end of their round be kept in buffers of `allocate`."""
        self._means.held.allocate = allocate

    def _add(self, payload: Payload, codec: str, weight: float, late: tuple[int, int] | None, node: str) -> None:
        scale = 1.0 if late is None else staleness_weight(late[1])
        form = self.payload_format(codec, (self._means.fragment,))
        mean = self._means.mean_for(node)
        mean.add_parts(self._changes(form, payload), weight, scale)
        state = None if late is None else self._states.get(late[0])
        if state is not None:
            mean.shift(self._parameter_count, state - self.values[self._parameter_count :], scale * weight)

    def begin_round(self, number: int, nodes: Sequence[str] = ()) -> None:
        """Take updates of the fragment of a round from now on, mostly of these nodes.

        The state that its nodes receive is remembered as long as late updates of it may count.
        """
        self._means.begin_round(self._config.fragment_of(number), number, nodes)
        limit = self._config.staleness_limit
        if limit and self._parameter_count < len(self.values):
            self._states[number] = self.values[self._parameter_count :].copy()
            self._states = {each: state for each, state in self._states.items() if each >= number - limit}

    def discard(self) -> None:
        """Remove the updates that were added since the last step."""
        self._means.held.clear()
        self._means.current.reset()

    def step(
        self,
        momentum: float | None = None,
        learning_rate: float | None = None,
        momentum_every: int = 1,
        spoiled_by: Sequence[str] = (),
    ) -> bool:
        """Apply the mean of the updates, to the fragment of the round and the state.

        Args:
            momentum: Momentum of SGD from this step on; None leaves it, and Adam has its own.
            learning_rate: Learning rate from this step on if the updates are gradients; None leaves it. Changes were
                made at the nodes' learning rate, and the server's step has its own.
            momentum_every: Steps after which the momentum of SGD is applied once.
            spoiled_by: Nodes whose updates may not be used, although they were added.

        Returns:
            False if the step was skipped, for `step_fault`: the values stay unchanged. If the result was not finite,
            the optimizer restarts.
        """
        for node, payload, codec, weight in self._means.held.take():
            self._add(payload, codec, weight, None, node)
        self._figures = None, None
        self.step_fault = self._means.without(spoiled_by) or self._means.missing
        if self.step_fault or not self._means.current.count:  # every update of the round may have been of a trial
            self._means.current.reset()
            return not self.step_fault
        mean = self._means.take()
        self._figures = self._means.current.norms(mean), None
        return self._apply(mean, momentum, learning_rate, momentum_every)

    @property
    def update_norms(self) -> tuple[float, float] | None:
        """(mean of |update|² over the nodes, |mean update|²) of the last step; None if it was skipped."""
        return self._figures[0]

    @property
    def step_sketch(self) -> Sketch | None:
        """Sketch of the last step's change of the values; None if it was skipped."""
        return self._figures[1]

    def watch_means(self, receiver: Callable[[Flat], None] | None) -> None:
        """Let a receiver have the mean of each step, which is overwritten when it returns."""
        self._means.receiver = receiver

    def replay(self, number: int, mean: Flat, step: tuple[float | None, float | None, int]) -> bool:
        """Take the step of a round again, with its mean; return as `step` does.

        Raises:
            ValueError: The mean has another size.
        """
        self._means.fragment = self._config.fragment_of(number)
        expected = self.fragments.size((self._means.fragment,)) + self.fragments.state_size
        if mean.shape != (expected,):
            raise ValueError(f"the mean of round {number} has {mean.size} values where {expected} belong")
        return self._apply(mean, *step)

    def _apply(self, mean: Flat, momentum: float | None, learning_rate: float | None, momentum_every: int) -> bool:
        optimizer = self._optimizers[self._means.fragment]
        parameters = self.fragments.size((self._means.fragment,))
        direction = mean[:parameters]
        if self._config.local_steps == 1:
            np.negative(direction, out=direction)
            if learning_rate is not None:
                optimizer.rate = learning_rate
        if momentum is not None and isinstance(optimizer, Sgd):
            optimizer.momentum = momentum
            optimizer.restarts = True
        if isinstance(optimizer, Sgd):
            optimizer.momentum_every = momentum_every
        stepped = self._copy_of_fragment()
        stepped[parameters:] += mean[parameters:]
        with np.errstate(over="ignore", invalid="ignore"):
            optimizer.step(stepped[:parameters], direction)
        self._means.current.reset()
        if not is_finite(stepped):
            self._optimizers[self._means.fragment] = self._new_optimizer(self._means.fragment)
            self._figures, self.step_fault = (None, None), "the result is not finite"
            return False
        self._figures = self._figures[0], self._sketch_of_step(stepped)
        self._replace_fragment(stepped)
        return True

    def _sketch_of_step(self, stepped: Flat) -> Sketch:
        """Return the sketch of the change from the present values of the fragment."""
        sketch = np.zeros(WIDTH, np.float32)
        before = self.values if self.is_whole else self.fragments.take(self.values, (self._means.fragment,))
        for start, part in pieces(stepped):
            self._sketcher.add(sketch, start, part - before[start : start + len(part)])
        return sketch

    def _copy_of_fragment(self) -> Flat:
        """Return a copy of the values that a step changes."""
        if not self.is_whole:
            return self.fragments.take(self.values, (self._means.fragment,))
        np.copyto(self._spare, self.values)
        return self._spare

    def _replace_fragment(self, stepped: Flat) -> None:
        if self.is_whole:
            self.values, self._spare = stepped, self.values
        else:
            self.fragments.put(stepped, self.values, (self._means.fragment,))

    def keep(self) -> None:
        """Keep a copy of the values for `revert`."""
        np.copyto(self._kept, self.values)

    def revert(self) -> None:
        """Restore the values of the last `keep`, or the initial ones, and restart the optimizers.

        Late updates that were added since the last step lead on from what is given up: they are removed.
        """
        self._means.current.reset()
        np.copyto(self.values, self._kept)
        self._optimizers = self._new_optimizers()

    @property
    def kept(self) -> Flat | None:
        """Values that `revert` would restore; None if they are the present ones."""
        return None if np.array_equal(self._kept, self.values) else self._kept

    def optimizer_state(self) -> Mapping[str, Flat]:
        """Return the optimizer's tensors for a checkpoint, by name; with their fragment, if there are several."""
        if self.is_whole:
            return self._optimizers[0].state()
        return {
            f"{_FRAGMENT}{fragment}.{name}": part
            for fragment, optimizer in enumerate(self._optimizers)
            for name, part in optimizer.state().items()
        }

    def restore(self, values: Flat, optimizer: Mapping[str, Flat] | None, kept: Flat | None = None) -> None:
        """Restore a checkpoint. After an error the model is unusable.

        Args:
            values: Parameters followed by state.
            optimizer: Tensors of the optimizer by name; None restarts it.
            kept: Values for `revert`; None for `values`.

        Raises:
            ValueError: A tensor is missing, has another shape, or is not finite.
        """
        to_return_to = values if kept is None else kept
        for found in (values, to_return_to):
            if found.shape != self.values.shape:
                raise ValueError(f"{len(found)} parameters where {len(self.values)} belong")
            if not is_finite(found):
                raise ValueError("the parameters are not all finite")
        np.copyto(self.values, values)
        np.copyto(self._kept, to_return_to)
        if optimizer is None:
            return
        for fragment, own in enumerate(self._optimizers):
            prefix = "" if self.is_whole else f"{_FRAGMENT}{fragment}."
            own.restore(
                {name.removeprefix(prefix): part for name, part in optimizer.items() if name.startswith(prefix)}
            )
