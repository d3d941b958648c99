"""One self-contained HTML page about a run or a store, with a viewer of episodes."""

from parl.report.data import report_source
from parl.report.page import write_report
from parl.report.timeline import episode_to_timeline

__all__ = ["episode_to_timeline", "report_source", "write_report"]
