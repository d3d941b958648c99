"""Tasks and the tools to solve them: the contract, users' own data, and the embedded world."""
