"""Baseline: random oversampling of rare types (imbalanced-learn), then the plain variational autoencoder.

Run:    python benchmarking/scrna_seq_specific/vae_ros.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/vae_ros/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt,
        run.json

Cells are repeated at random until every type has as many as the largest; then `benchmarking/sota/vae.py` learns from
them.
How it differs from the paper: docs/baselines.md.
"""

from benchmarking.baseline import script
from benchmarking.scrna_seq_specific.oversampling import oversample, sample
from benchmarking.sota.vae import LABELS, learn, make
from benchmarking.training import fit_by

__all__ = ["LABELS", "fit", "main", "make", "sample"]

fit = fit_by(learn, arrange=oversample)
main = script("vae_ros", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
