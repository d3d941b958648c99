"""Pictures and videos of the family."""
