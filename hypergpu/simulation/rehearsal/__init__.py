"""Rehearsal of settings in virtual time, from the present state of a run."""
