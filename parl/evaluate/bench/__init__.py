"""Published benchmarks from the command line: preparing, running and scoring."""
