"""The rounds of a run: one state machine, driven by real time and by virtual time alike."""
