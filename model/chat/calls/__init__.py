"""How model families write tool calls: one reader each."""
