"""The open trainer for agent swarms."""

from parl.own_packages import claim

__version__ = "0.1.0"

claim()
