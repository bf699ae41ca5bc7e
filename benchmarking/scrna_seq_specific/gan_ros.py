"""Baseline: random oversampling of rare types (imbalanced-learn), then the plain generative adversarial network.

Run:    python benchmarking/scrna_seq_specific/gan_ros.py --dataset pbmc68k --holdout 0.5 --seed 0
Reads:  a data set of config.py, or your own cells (--input, --expression-csv)
Writes: results/synthetic/<dataset>/gan_ros/seed<k>/: cells.h5ad, cells.csv, losses.csv, heldout.csv, model.pt,
        run.json

Cells are repeated at random until every type has as many as the largest; then `benchmarking/sota/gan.py` learns from
them. Differs from the published comparison:
1. Cells are labelled by a classifier, and drawn in the composition of the training cells: balance serves the training.
2. `tuned`: the network and the stopping rule of the plain GAN, judged by balanced validation cells.
3. `paper`: its 200 epochs of the balanced cells, a tenth of what the plain GAN had.
"""

from anndata import AnnData

from benchmarking.baseline import Unconditional, script
from benchmarking.scrna_seq_specific.oversampling import fit_oversampled, sample
from benchmarking.sota.gan import LABELS, learn
from common.cli import Reporter, silent
from config import GanParams
from data_generation.model import Device

__all__ = ["LABELS", "fit", "main", "sample"]


def fit(
    cells: AnnData, params: GanParams, *, seed: int, device: Device = "auto", report: Reporter = silent
) -> Unconditional:
    """Learn from real cells; the contract of `data_generation.model.fit`."""
    return fit_oversampled(learn, cells, params, seed=seed, device=device, report=report)


main = script("gan_ros", __doc__, fit, sample, LABELS)

if __name__ == "__main__":
    main()
