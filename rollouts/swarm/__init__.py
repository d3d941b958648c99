"""One episode: an orchestrator and its sub-agents."""
