"""The engine over the family's decoder, in a Ray actor."""
