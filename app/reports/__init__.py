"""The evaluation report: one HTML file that works offline, in light and dark, on a phone."""

from app.reports.render import write_report

__all__ = ["write_report"]
