"""The embedded wide-search world: knowledge, pages, HTTP tools, tasks, reference policies."""
