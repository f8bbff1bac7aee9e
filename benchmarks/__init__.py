"""Comparisons with other software on the same weights: one command each, see README.md. None passes or fails."""
