"""A user's data, read strictly; all mistakes are reported with file, line and fix."""
