"""A user's folder of documents as a corpus."""
