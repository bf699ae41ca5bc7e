"""Measures of synthetic cells against held-out real ones."""
