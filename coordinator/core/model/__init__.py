"""Global model: parameters, mean of the updates, and the optimizer step."""
