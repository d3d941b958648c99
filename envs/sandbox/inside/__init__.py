"""The program inside a sandbox: it starts, confines and watches untrusted code. Standard library only."""
