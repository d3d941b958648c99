"""The start of a policy from scratch, and imitation."""
