"""The network emulator for gRPC: a relay of HTTP/2 frames that delivers them when its link model says."""
