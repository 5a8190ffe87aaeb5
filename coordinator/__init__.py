"""The coordinator: rounds, aggregation, adaptation, and the services that nodes and users call."""
