"""Stored episodes: finding, showing, exchanging and replaying them."""
