"""The world's pages: an HTTP application over a full-text index."""
