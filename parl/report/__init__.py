"""One self-contained HTML page about a run: verdict, curves, swarm timelines."""

from parl.report.page import write_report
from parl.report.timeline import episode_to_timeline, write_timelines

__all__ = ["episode_to_timeline", "write_report", "write_timelines"]
