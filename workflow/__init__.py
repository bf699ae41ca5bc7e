"""The reproduction: what is made in which order, and the same in small."""
