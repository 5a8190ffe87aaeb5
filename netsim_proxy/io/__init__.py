"""I/O of the proxy: sockets, clock, timer, TLS and listeners."""
