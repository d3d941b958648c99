"""The machine under a run: Ray, memory, death and hangs."""
