"""A cluster of several machines: its checks, the places of actors, and code and files for its nodes."""
