"""Real text to search: a corpus folder of pages and questions as an environment, and what builds such folders."""
