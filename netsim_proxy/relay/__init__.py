"""The relay of frames without I/O: parsing, streams, flow control and order, as a function of bytes and time."""
