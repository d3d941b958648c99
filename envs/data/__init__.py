"""A user's data, read strictly: files, tables and task rows, with every mistake named by file, line, field and cure."""
