"""A user's data, read strictly: files, tables, task rows; mistakes have file, line, field and fix."""
