"""Episodes: attempts at a task by an orchestrator and its sub-agents; running, storing and serving them."""
