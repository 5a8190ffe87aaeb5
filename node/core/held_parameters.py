"""Parameters that a node holds between its work units, so that it can receive the difference to them."""

from collections.abc import Sequence

import numpy as np

from hypergpu.common.codecs import Codec, PayloadFormat
from hypergpu.common.errors import InvalidInput, ProtocolError
from hypergpu.common.fragments import MAX_FRAGMENTS, Fragments
from hypergpu.common.tensors import Flat, Manifest, Payload
from hypergpu.node.core.local_model import LocalModel


class HeldParameters:
    """Buffer of the parameters of one run, and which version of them it holds.

    Args:
        manifest: tensors of the model.
        parameters: number of values that a codec may change; the rest is state, which stays exact.
    """

    def __init__(self, manifest: Manifest, parameters: int) -> None:
        self.manifest = manifest
        self.version = 0
        """Version of the parameters; of a whole model, one to which a difference can be added; 0 = none."""
        self.flat: Flat = np.empty(manifest.size, np.float32)
        """Parameters and state; complete after `finish`. Not used where rounds synchronise fragments."""
        self.local: LocalModel | None = None
        """Values of the fragments; None where rounds synchronise the whole model."""
        self._parameters, self._state = parameters, manifest.size - parameters
        self._payload: Payload = np.empty(0, np.uint8)

    @property
    def fragment_versions(self) -> Sequence[int]:
        """Version of each fragment to which a difference can be added; empty without fragments."""
        return self.local.fragment_versions if self.local else ()

    def split(self, count: int) -> LocalModel:
        """Return the values of this number of fragments, made when it is called first.

        Raises:
            ProtocolError: this model cannot have so many, or it had another number.
        """
        if not 1 < count <= MAX_FRAGMENTS:
            raise ProtocolError(f"an order of one of {count} fragments; expected 2 to {MAX_FRAGMENTS}")
        if self.local is None:
            try:
                fragments = Fragments(self.manifest, self._parameters, count)
            except InvalidInput as error:
                raise ProtocolError(str(error)) from error
            self.local = LocalModel(fragments, self.manifest.size)
            self.flat = np.empty(0, np.float32)
        if self.local.fragments.count != count:
            raise ProtocolError(f"an order of one of {count} fragments, after one of {self.local.fragments.count}")
        return self.local

    def payload_format(self, codec: Codec, fragments: Sequence[int] = ()) -> PayloadFormat:
        """Return the format of a payload of these parameters, or of some fragments of them.

        Raises:
            ProtocolError: there is no such fragment.
        """
        if not fragments:
            return PayloadFormat(codec, self._parameters, self._state)
        count = self.local.fragments.count if self.local else 0
        if self.local is None or not all(each < count for each in fragments) or len(set(fragments)) < len(fragments):
            raise ProtocolError(f"parameters of the fragments {fragments}; the model has {count}")
        return PayloadFormat(codec, self.local.fragments.size(fragments), self._state)

    def begin(self, form: PayloadFormat, base: int, fragments: Sequence[int] = ()) -> Payload:
        """Return the buffer to receive a payload into.

        Args:
            form: format of the payload.
            base: version to which it is the difference; 0 = it holds the parameters themselves.
            fragments: numbers of the fragments in it; empty = the whole model.

        Raises:
            ProtocolError: this node does not hold that version.
        """
        held = self.fragment_versions[fragments[0]] if fragments else self.version
        if base and (base != held or len(fragments) > 1):
            raise ProtocolError(f"a difference to version {base} of the parameters; this node holds {held}")
        if form.codec.is_exact and not base and not fragments:
            self.version = 0  # each byte that arrives overwrites what is held
            return self.flat.view(np.uint8)
        if len(self._payload) != form.payload_bytes:
            self._payload = np.empty(form.payload_bytes, np.uint8)
        return self._payload

    def finish(self, form: PayloadFormat, version: int, base: int) -> None:
        """Turn the whole payload into the parameters of `version`.

        Raises:
            ProtocolError: the payload is not in its format; nothing is held then.
        """
        self.version = 0
        if base:
            form.add_to(self._payload, self.flat)
        elif not form.codec.is_exact:
            form.decode(self._payload, self.flat)
        self.version = version

    def finish_fragments(
        self,
        form: PayloadFormat,
        fragments: Sequence[int],
        version: int,
        *,
        fragment: int,
        base: int,
        later: bool = False,
    ) -> None:
        """Turn the whole payload into fragments of the parameters of `version`.

        Args:
            form: format of the payload.
            fragments: numbers of the fragments in it.
            version: version of the whole parameters that is then complete.
            fragment: version of the only fragment; see `fragment_versions`.
            base: version of that fragment to which the payload is the difference; 0 = it holds the values themselves.
            later: they arrived during a work unit, and count from the next one on (`LocalModel.receive_later`).

        Raises:
            ProtocolError: the payload is not in its format; what is held stays as it was.
        """
        if self.local is None:
            raise ProtocolError("fragments of a model that was not split")
        if later and version == self.version:
            return  # the unit was given up and assigned again
        self.local.receive_payload(form, self._payload, fragments, fragment, is_difference=base > 0, later=later)
        self.version = version
