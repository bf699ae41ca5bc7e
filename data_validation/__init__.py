"""Whether genes and clusters found on synthetic cells are those of the real ones."""
