"""Generators made for single-cell RNA-seq, and plain ones trained on oversampled cells, as baselines."""
