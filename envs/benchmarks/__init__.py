"""Published benchmarks: one file each, with its loader, limits and scorer."""
