"""The model that is trained: its parameters, the mean of the updates, and the step on it."""
