"""Pages and figures of runs."""

from dopd_vlm.report.comparison import write_comparison
from dopd_vlm.report.run_page import write_report
from dopd_vlm.report.static_figure import write_figure

__all__ = [
    "write_comparison",
    "write_figure",
    "write_report",
]
