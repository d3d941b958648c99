"""The `parl` command."""
