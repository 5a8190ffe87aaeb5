"""The cluster in virtual time: the same cores and the same link model as the services, under a clock that jumps."""
