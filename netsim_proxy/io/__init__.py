"""The proxy's edge: sockets, clock, timer, TLS and listeners."""
