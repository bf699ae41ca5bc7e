"""Comparisons with other ways to do the same."""
