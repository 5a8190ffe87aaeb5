"""The live page of a run: static files, and the records of the run as a stream of events."""

from hypergpu.coordinator.page.about import about_directory, about_settings
from hypergpu.coordinator.page.routes import page_address, page_routes

__all__ = ["about_directory", "about_settings", "page_address", "page_routes"]
