"""Engines that are inference servers."""
