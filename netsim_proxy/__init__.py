"""Network emulator for gRPC: a relay of HTTP/2 frames that delivers each at the time given by its link model."""
