"""Parameters that a node holds between its work units, so that it can receive the difference to them."""

import numpy as np

from hypergpu.common.codecs import Codec, PayloadFormat
from hypergpu.common.errors import ProtocolError
from hypergpu.common.tensors import Flat, Manifest, Payload


class HeldParameters:
    """Buffer of the parameters of one run, and which version of them it holds.

    Args:
        manifest: tensors of the model.
        parameters: number of values that a codec may change; the rest is state, which stays exact.
    """

    def __init__(self, manifest: Manifest, parameters: int) -> None:
        self.manifest = manifest
        self.version = 0
        """Version to which a difference can be added; 0 = none."""
        self.flat: Flat = np.empty(manifest.size, np.float32)
        """Parameters and state; complete after `finish`."""
        self._parameters, self._state = parameters, manifest.size - parameters
        self._payload: Payload = np.empty(0, np.uint8)

    def payload_format(self, codec: Codec) -> PayloadFormat:
        """Return the format of a payload of these parameters."""
        return PayloadFormat(codec, self._parameters, self._state)

    def begin(self, form: PayloadFormat, base: int) -> Payload:
        """Return the buffer to receive a payload into.

        Args:
            form: format of the payload.
            base: version to which it is the difference; 0 = it holds the parameters themselves.

        Raises:
            ProtocolError: this node does not hold that version.
        """
        if base and base != self.version:
            raise ProtocolError(f"a difference to version {base} of the parameters; this node holds {self.version}")
        if form.codec.is_exact and not base:
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
