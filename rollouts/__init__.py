"""Episodes: one attempt at a task by an orchestrator and its sub-agents, made, stored and served."""
