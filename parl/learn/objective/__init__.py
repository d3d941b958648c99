"""Objectives: one file each."""
