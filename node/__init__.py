"""A GPU worker, real or simulated: it pulls work from the coordinator, trains, and pushes the update back."""
