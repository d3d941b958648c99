"""Policies on servers and in files."""
