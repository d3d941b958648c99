"""An OpenAI-compatible server that records traces."""
