"""What the proxy offers beside its connections: control API, schedule, metrics, health, reload."""
