"""The corpus ``factbook``: the CIA World Factbook and leads of Wikipedia, with questions whose gold is known."""
