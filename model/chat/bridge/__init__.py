"""Chat formats of other people: any Jinja template, and the `renderers` package."""
