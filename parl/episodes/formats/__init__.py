"""Other people's formats of trajectories, in and out. One file a format; ``registry`` has them all."""
