"""The embedded wide-search world: generated knowledge, pages, an index, HTTP tools, tasks and reference policies."""
