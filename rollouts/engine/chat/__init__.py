"""Sub-agents at chat servers."""
