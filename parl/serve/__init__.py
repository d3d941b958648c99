"""Policies to servers and to files."""
