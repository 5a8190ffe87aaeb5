"""The report of a run: one self-contained HTML page."""

from hypergpu.report.writing import SIMULATED, Report, write_report

__all__ = ["SIMULATED", "Report", "write_report"]
