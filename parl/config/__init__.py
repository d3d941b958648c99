"""The configuration of a run: schema, loading, errors, plug-ins."""
