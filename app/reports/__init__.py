"""The evaluation report: one HTML file that works offline."""

from app.reports.render import write_report

__all__ = ["write_report"]
