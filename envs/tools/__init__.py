"""Tools that any environment can offer: Python in the sandbox, files, pages of the web, hosted search."""
