"""The report of a run: one self-contained HTML page."""

from hypergpu.report.writing import Report, write_report

__all__ = ["Report", "write_report"]
