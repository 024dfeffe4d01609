"""Edits that are made and measured again and again: the studies behind the notebooks' figures."""
