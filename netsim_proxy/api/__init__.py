"""Services of the proxy beside its connections: control API, schedule, metrics, health, reload."""
