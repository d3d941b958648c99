"""The machine under a run: Ray, memory, dead and hung processes."""
