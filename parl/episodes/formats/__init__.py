"""Trajectory formats of other tools, in and out. One file per format; all are in ``registry``."""
