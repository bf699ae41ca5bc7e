"""Parts of GARAGE taken away or varied, and what changes."""
