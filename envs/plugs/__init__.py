"""Environments made of other people's parts: functions, servers, retrievers, task sets. One file each."""
