"""Episodes: attempts at a task by an orchestrator and its sub-agents."""
