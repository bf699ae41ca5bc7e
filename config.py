"""Paths, the DATASETS table and every hyperparameter. This is the file to edit.

Values flow one way: this file -> a flag of the script -> a params object -> a function argument -> `run.json`.
Algorithm code reads no value here, only the classes of its parameters. A flag beats the file; there is no third source.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_type_hints

from common.errors import UserError

ROOT = Path(__file__).resolve().parent
DATA_DIR = ROOT / "data"
RESULTS_DIR = ROOT / "results"
SEED = 42  # as published


# ---------------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class Dataset:
    """One row of the DATASETS table: where a data set lies, and the layout of its files.

    Files are named relative to `DATA_DIR`. An `expression` of None marks the data set embedded in scanpy.
    """

    description: str
    source: str
    """publication or accession"""
    rare_threshold: int
    """a cell type with at most this many cells is rare"""
    expression: str | None = None
    """expression matrix, a text table"""
    labels: str | None = None
    """cell types, one line a cell"""
    header: bool = False
    """the expression table's first line holds names"""
    index: bool = False
    """the expression table's first column holds names"""
    transpose: bool = False
    """the expression table is genes x cells"""
    label_column: str | None = None
    """column of the label table; None when it has one column and no header"""
    gene_separator: str | None = None
    """gene names are cut at the first occurrence of this (`SYMBOL__chr`)"""
    expression_sha256: str | None = None
    """None where no checksum was published"""
    labels_sha256: str | None = None


DATASETS: dict[str, Dataset] = {
    "pbmc68k": Dataset(
        description="700 blood cells x 765 genes, 10 types; UMI counts, recovered from scanpy's pbmc68k_reduced",
        source="Zheng 2017, doi 10.1038/ncomms14049",
        rare_threshold=20,
    ),
    "yan": Dataset(
        description="90 cells of human embryos x 10,564 genes, 6 types; Linnorm-normalised",
        source="Yan 2013, GSE36552",
        rare_threshold=10,
        expression="expression_matrix/yan_process.csv",
        labels="cell_types/yan_celltype.csv",
        transpose=True,
        expression_sha256="8df75d5e35b844c6a8f97b98b810232fa09c6683ab36eb1bfa16907717965b51",
        labels_sha256="07d7954aaeee89bea8d97777af809be3f180d5a12de6bebf1f31766fea4397ca",
    ),
    "pollen": Dataset(
        description="299 cells of 11 human tissues and lines x 14,802 genes, 11 types",
        source="Pollen 2014, SRP041736",
        rare_threshold=25,
        expression="expression_matrix/pollen_process.txt",
        labels="cell_types/pollenc.txt",
    ),
    "cbmc": Dataset(
        description="7,895 cord blood cells x 2,000 genes, 13 types; scaled",
        source="Stoeckius 2017, GSE100866",
        rare_threshold=200,
        expression="expression_matrix/cbmc_rna_scaled.csv",
        labels="cell_types/cell_type_cbmc.csv",
        header=True,
        index=True,
        transpose=True,
        label_column="x",
        expression_sha256="64fadce80ecad64c7f7acc87f7bf9f36d24bd027f979b0e6bfbe26af91b8ea5d",
        labels_sha256="2299b4cb5b76b1d087d81b474049474da44bbf2e36990694d7e05c940a2fc904",
    ),
    "muraro": Dataset(
        description="2,126 cells of human pancreas x 19,156 genes, 10 types",
        source="Muraro 2016, GSE85241",
        rare_threshold=200,
        expression="expression_matrix/muraro_expression_matrix.csv",
        labels="cell_types/muraro_cell_types.csv",
        header=True,
        label_column="cell_type",
        gene_separator="__",
        expression_sha256="2658b97e21f2076cfea23a13b402899ac4cb431fc1f6b219458aa8144e8cc2de",
        labels_sha256="aa1a13937f673b6372fded40a20262d521e9e62f011eef2ad8054d2aa83914e5",
    ),
}


# ---------------------------------------------------------------------------------------------- hyperparameters


class Range(NamedTuple):
    """What a hyperparameter may be: from `low` to `high`, both included."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        return "a number above 0" if self == POSITIVE else f"a number of at least {self.low:g}"


POSITIVE = Range(1e-12)


@dataclass(frozen=True)
class Params:
    """Hyperparameters of some method."""

    def __post_init__(self) -> None:
        """Refuse values out of range, which would train on nonsense or not at all."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if isinstance(value, tuple) and not (value and min(value) >= 1):  # widths of layers
                raise UserError(
                    f"{flag} is {' '.join(map(str, value)) or 'empty'}: give one width or more, each 1 at least"
                )
            for allowed in getattr(hint, "__metadata__", ()):
                if value is not None and not allowed.low <= value <= allowed.high:  # nan is in no range
                    raise UserError(f"{flag} is {value}: give {allowed}")


SeedsBy = Literal["attention", "reach", "random", "degree", "k_centre"]


@dataclass(frozen=True)
class SelectionParams(Params):
    """Stage 1: the cell-cell graph, the attention network and the choice of seed cells."""

    leakage: Annotated[float, Range(0, 1)] = 0.2
    """share of the training cells that become seeds, and of the rows of a mini-batch that start from a seed"""
    rare_threshold: Annotated[int | None, Range(0)] = None
    """a type with at most this many cells is rare; by default what DATASETS says, else 5 % of the cells, 10 at least"""
    neighbors: Annotated[int, Range(2)] = 5
    """neighbours of a cell in the kNN graph, the cell itself counted as one (as published)"""
    graph_on: Literal["pcs", "genes"] = "pcs"
    """space in which neighbours are searched, and the attention network's input"""
    graph_pcs: Annotated[int, Range(1)] = 50
    """principal components of the log-normalised cells, when graph_on is pcs"""
    graph_symmetric: bool = True
    """join two cells when either is a neighbour of the other; otherwise edges run from neighbour to cell only"""
    gat_heads: Annotated[int, Range(1)] = 8
    """attention heads of the first layer; the second has one"""
    gat_hidden: Annotated[int, Range(1)] = 32
    """features per head"""
    gat_networks: Annotated[int, Range(1)] = 1
    """attention networks to average over, each from weights and validation cells of its own"""
    gat_epochs: Annotated[int, Range(0)] = 500
    """most full-batch epochs of the attention network"""
    gat_lr: Annotated[float, POSITIVE] = 5e-3
    """learning rate (Adam)"""
    gat_validation: Annotated[float, Range(0, 0.9)] = 0.15
    """share of each type's cells held back for early stopping; 0 trains on all cells for all epochs"""
    gat_patience: Annotated[int, Range(1)] = 50
    """epochs without a better validation loss before stopping"""
    gat_balanced: bool = True
    """weight the cross-entropy so that every type counts the same"""
    priority_weight: Annotated[float, Range(0)] = 2.0
    """extra weight of rare cells: what counts as 1 for others counts 1 + priority_weight for them"""
    priority_on: Literal["loss", "features"] = "loss"
    """where the priority weight acts: on the cross-entropy, or on the hidden features (as published)"""
    rare_quota: bool = True
    """share seeds out by type, rare cells counting more; otherwise take the best by seeds_by, of whatever type"""
    rare_only: bool = False
    """take seeds from rare types only"""
    seeds_by: SeedsBy = "attention"
    """how seeds are chosen: those of highest attention (as published); those that together are attended to by most
    cells; or, to compare with, by chance, by how many cells listen to a cell, or by distance from the seeds so far
    (farthest-first)"""


CalibrateOn = Literal["auto", "counts", "normalised"]


@dataclass(frozen=True)
class GarageParams(SelectionParams):
    """Preset `garage`: an observation model anchors the generator, a critic refines it, marginals are calibrated."""

    seeds_by: SeedsBy = "reach"
    seed_share: Annotated[float | None, Range(0, 1)] = None
    """share of a type's cells that are drawn from the neighbourhoods of seeds, not from one normal distribution; by
    default what explains cells of the type best that neither knows: much where a label hides several types"""
    latent_dim: Annotated[int, Range(1)] = 10
    """dimensions of the latent space"""
    hidden_dim: Annotated[int | None, Range(1)] = None
    """width of the two hidden layers of encoder and decoder; by default the square root of the number of training
    cells, from 16 to 128: a wider network learns few cells by heart"""
    batch_size: Annotated[int, Range(1)] = 128
    """rows of a mini-batch"""
    anchor_epochs: Annotated[int, Range(0)] = 300
    """passes over the cells that maximise the likelihood before the critic joins"""
    anchor_steps: Annotated[int, Range(1)] = 20_000
    """most steps that this takes, however many cells there are"""
    warmup_epochs: Annotated[int, Range(0)] = 30
    """epochs over which the weight of the Kullback-Leibler term rises from 0 to 1; a tenth of anchor_steps at most"""
    anchor_lr: Annotated[float, POSITIVE] = 1e-3
    """learning rate of the anchor phase (AdamW)"""
    critic_steps: Annotated[int, Range(0)] = 500
    """adversarial steps after the anchor; 0 leaves the critic out"""
    critic_hidden: Annotated[int, Range(1)] = 256
    """width of the two hidden layers of the critic"""
    critic_genes: Annotated[int, Range(1)] = 2000
    """the critic sees this many genes at most, the most variable ones: of tens of thousands it would take most of the
    time"""
    generator_lr: Annotated[float, POSITIVE] = 2e-4
    """learning rate of encoder and decoder in the adversarial phase (Adam)"""
    critic_lr: Annotated[float, POSITIVE] = 4e-4
    """learning rate of the critic (Adam)"""
    adversarial_weight: Annotated[float, Range(0)] = 10.0
    """weight of the critic's verdict beside the negative ELBO"""
    r1_weight: Annotated[float, Range(0)] = 1.0
    """weight of the gradient penalty on real cells"""
    r1_every: Annotated[int, Range(1)] = 8
    """steps between two gradient penalties (lazy regularisation)"""
    ema_decay: Annotated[float, Range(0, 1)] = 0.995
    """decay of the moving average of the generator's weights, from which cells are drawn"""
    latent_spread: Annotated[float, POSITIVE] = 1.2
    """spread of the noise rows' latent vectors, in standard deviations of the training cells' posteriors; compensates
    for a decoder that underestimates the variation within types"""
    calibrate: bool = True
    """bring each gene's marginal distribution in each type to that of the training cells"""
    calibrate_on: CalibrateOn = "auto"
    """for counts: what is brought to the training cells' distribution; auto takes normalised values for read counts"""
    calibrate_detection: bool = True
    """add a component shared by all genes of a cell, so that the number of detected genes varies within types as in the
    training cells; not used where counts are calibrated as they are, for library size accounts for it there"""
    calibration_prior: Annotated[float, Range(0)] = 2.0
    """cells' worth of trust in the network's own marginals; types with few cells lean on it"""
    calibration_cells: Annotated[int, Range(2)] = 1000
    """reference cells drawn per type to know the network's marginals"""


@dataclass(frozen=True)
class PaperParams(SelectionParams):
    """Preset `paper`: the published model and loop (full batch), with real attention in place of the misreading."""

    graph_on: Literal["pcs", "genes"] = "genes"
    graph_symmetric: bool = False
    gat_epochs: Annotated[int, Range(0)] = 7501
    gat_validation: Annotated[float, Range(0, 0.9)] = 0.0
    gat_balanced: bool = False
    priority_on: Literal["loss", "features"] = "features"
    iterations: Annotated[int, Range(0)] = 20001
    """full-batch iterations, each of several critic and generator steps"""
    generator_hidden: tuple[int, ...] = (1024, 1024)
    """hidden layers of the generator"""
    critic_hidden: tuple[int, ...] = (512, 256)
    """hidden layers of the critic; a gene-wide linear layer and the logit follow"""
    generator_steps: Annotated[int, Range(0)] = 2
    """generator steps an iteration"""
    critic_steps: Annotated[int, Range(0)] = 5
    """critic steps an iteration"""
    generator_lr: Annotated[float, POSITIVE] = 2e-4
    """learning rate of the generator (RMSprop)"""
    critic_lr: Annotated[float, POSITIVE] = 4e-4
    """learning rate of the critic (RMSprop)"""
    real_target: Annotated[float, Range(0, 1)] = 0.9
    """the critic's smoothed label of real cells"""
    fake_target: Annotated[float, Range(0, 1)] = 0.1
    """the critic's smoothed label of generated cells"""
    clip_norm: Annotated[float, POSITIVE] = 1.0
    """gradient norm at which generator and critic are clipped"""


PRESETS: dict[str, type[GarageParams] | type[PaperParams]] = {"garage": GarageParams, "paper": PaperParams}


# ---------------------------------------------------------------------------------------------- baselines


@dataclass(frozen=True)
class BaselineParams(Params):
    """Training of any baseline. The defaults are preset `tuned`, in which all methods stop by the same rule."""

    budget: Annotated[int, Range(0)] = 10000
    """most mini-batches or epochs of training"""
    budget_in: Literal["steps", "epochs"] = "steps"
    """what the budget counts: mini-batches, or passes over the training cells (as published)"""
    batch_size: Annotated[int, Range(2)] = 128
    """rows of a mini-batch"""
    validation: Annotated[float, Range(0, 0.9)] = 0.1
    """share of the training cells that only decides when to stop; 0 trains on all of them for the whole budget"""
    check_every: Annotated[int, Range(1)] = 250
    """steps between two rows of the loss table, and two checks against the validation cells"""
    patience: Annotated[int, Range(1)] = 10
    """checks without a better one before training stops"""


@dataclass(frozen=True)
class AdversarialParams(BaselineParams):
    """What the plain GANs share."""

    generator_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the generator"""
    critic_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the critic"""
    generator_lr: Annotated[float, POSITIVE] = 2e-4
    """learning rate of the generator"""
    critic_lr: Annotated[float, POSITIVE] = 4e-4
    """learning rate of the critic"""
    critic_steps: Annotated[int, Range(1)] = 1
    """critic steps, a mini-batch each, before it is the generator's turn"""
    generator_steps: Annotated[int, Range(1)] = 1
    """generator steps a turn"""
    ema_decay: Annotated[float, Range(0, 1)] = 0.995
    """decay of the moving average of the generator's weights, from which cells are drawn; 0 takes the last ones"""
    r1_weight: Annotated[float, Range(0)] = 1.0
    """weight of the gradient penalty on real cells"""
    whole_counts: bool = True
    """the critic sees generated cells as they are handed out: no negative values, counts whole"""


@dataclass(frozen=True)
class GanParams(AdversarialParams):
    """The plain GAN."""

    latent_dim: Annotated[int, Range(1)] = 100
    """dimensions of the generator's normal noise"""
    beta1: Annotated[float, Range(0, 0.999)] = 0.5
    """Adam's decay of the mean gradient"""


@dataclass(frozen=True)
class WganParams(AdversarialParams):
    """The Wasserstein GAN; the budget counts critic steps."""

    latent_dim: Annotated[int, Range(1)] = 100
    """dimensions of the generator's normal noise"""
    critic_steps: Annotated[int, Range(1)] = 5
    """critic steps, a mini-batch each, before it is the generator's turn"""
    clip: Annotated[float, POSITIVE] = 0.01
    """largest weight of the critic"""
    r1_weight: Annotated[float, Range(0)] = 0.0
    """weight of a gradient penalty on real cells beside the clipping"""


@dataclass(frozen=True)
class FganParams(GanParams):
    """The f-GAN."""

    divergence: Literal["kl", "reverse_kl", "pearson", "jensen_shannon", "fisher_ratio"] = "jensen_shannon"
    """the f-divergence that is minimised; fisher_ratio is the published code's loss instead"""


@dataclass(frozen=True)
class LshGanParams(AdversarialParams):
    """LSH-GAN."""

    neighbors: Annotated[int, Range(2)] = 5
    """neighbours that a kept cell strikes out, the cell itself counted as one"""
    hash_tables: Annotated[int, Range(1)] = 32
    """hash tables; more find more neighbours"""
    hash_bits: Annotated[int, Range(1, 64)] = 8
    """random projections of a table; more find nearer neighbours"""
    generate_from: Literal["mixed", "noise"] = "mixed"
    """input of the generator when cells are drawn: noise with kept cells among it as in training, or noise alone"""


@dataclass(frozen=True)
class VaeParams(BaselineParams):
    """The plain variational autoencoder."""

    latent_dim: Annotated[int, Range(1)] = 10
    """dimensions of the latent space"""
    encoder_hidden: tuple[int, ...] = (128, 128)
    """hidden layers of the encoder, one at least"""
    decoder_hidden: tuple[int, ...] = (512, 512)
    """hidden layers of the decoder"""
    lr: Annotated[float, POSITIVE] = 3e-4
    """learning rate (Adam)"""
    likelihood: Literal["normal", "squared_error"] = "squared_error"
    """squared_error: a variance of 1/2 for every gene if summed, and generated cells are the decoder's means, rounded
    at random; normal: values vary about them by a learnt variance of each gene, and so do generated ones"""
    reduce: Literal["sum", "mean"] = "sum"
    """over genes and over latent dimensions; sums make the evidence lower bound, by means the posterior collapses"""
    warmup: Annotated[int, Range(0)] = 1000
    """steps over which the weight of the Kullback-Leibler term rises from 0 to 1"""


@dataclass(frozen=True)
class ScganParams(BaselineParams):
    """scGAN; the budget counts critic steps."""

    latent_dim: Annotated[int, Range(1)] = 16
    """dimensions of the generator's normal noise"""
    generator_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the generator"""
    critic_hidden: tuple[int, ...] = (256, 256)
    """hidden layers of the critic"""
    generator_lr: Annotated[float, POSITIVE] = 1e-3
    """learning rate of the generator (AMSGrad)"""
    critic_lr: Annotated[float, POSITIVE] = 1e-3
    """learning rate of the critic (AMSGrad)"""
    critic_steps: Annotated[int, Range(1)] = 2
    """critic steps, a mini-batch each, before it is the generator's turn"""
    penalty: Annotated[float, Range(0)] = 10.0
    """weight of the gradient penalty"""
    ema_decay: Annotated[float, Range(0, 1)] = 0.999
    """decay of the moving average of the generator's weights, from which cells are drawn; 0 takes the last ones"""
    whole_counts: bool = True
    """round counts before the critic, which then sees them as they are handed out"""


@dataclass(frozen=True)
class ScvaeParams(BaselineParams):
    """scVAE."""

    likelihood: Literal["nb", "zinb"] = "nb"
    """of counts: negative binomial, or zero-inflated; scaled values are normal"""
    latent_dim: Annotated[int, Range(1)] = 32
    """dimensions of the latent space"""
    hidden: tuple[int, ...] = (128, 128)
    """hidden layers of the encoder, and of the decoder the other way round"""
    lr: Annotated[float, POSITIVE] = 1e-3
    """learning rate (Adam)"""
    kl_weight: Annotated[float, Range(0)] = 1.0
    """weight of the Kullback-Leibler term; 1 makes the loss the evidence lower bound"""
    warmup: Annotated[int, Range(0)] = 300
    """steps over which that weight rises from 0"""


@dataclass(frozen=True)
class ScdiffusionParams(BaselineParams):
    """scDiffusion; the budget is that of the diffusion."""

    latent_dim: Annotated[int, Range(1)] = 16
    """dimensions of the autoencoder's latent space"""
    autoencoder_hidden: tuple[int, ...] = (256, 128)
    """hidden layers of the encoder, and of the decoder the other way round"""
    autoencoder_steps: Annotated[int, Range(0)] = 3000
    """mini-batches from which the autoencoder learns, before the diffusion"""
    denoiser_hidden: tuple[int, ...] = (256, 128, 64)
    """widths of the denoiser on its way down; it goes up again by the same"""
    classifier_hidden: tuple[int, ...] = (128, 64)
    """hidden layers of the classifier that guides"""
    diffusion_steps: Annotated[int, Range(2)] = 200
    """steps from a cell to noise"""
    guidance: Annotated[float, Range(0)] = 1.0
    """weight of the classifier's gradient; 0 draws whatever type comes"""
    lr: Annotated[float, POSITIVE] = 1e-3
    """learning rate (AdamW)"""
    ema_decay: Annotated[float, Range(0, 1)] = 0.995
    """decay of the moving average of the weights, by which cells are drawn; 0 takes the last ones"""


BASELINES: dict[str, dict[str, BaselineParams]] = {
    "gan": {
        "tuned": GanParams(),
        "paper": GanParams(
            budget=2001, budget_in="epochs", batch_size=64, validation=0.0, generator_hidden=(32,), critic_hidden=(32,),
            generator_lr=1e-4, critic_lr=1e-4, ema_decay=0.0, r1_weight=0.0, whole_counts=False, beta1=0.9,
        ),
    },
    "wgan": {
        "tuned": WganParams(
            latent_dim=32, generator_hidden=(128, 128), critic_hidden=(64,), generator_lr=1e-3, critic_lr=5e-4,
            clip=0.03, critic_steps=2,
        ),
        "paper": WganParams(
            budget=2001, budget_in="epochs", batch_size=64, validation=0.0, generator_hidden=(32,), critic_hidden=(32,),
            generator_lr=5e-4, critic_lr=5e-4, ema_decay=0.0, r1_weight=0.0, whole_counts=False,
        ),
    },
    "fgan": {
        "tuned": FganParams(),
        "paper": FganParams(
            budget=2001, budget_in="epochs", batch_size=64, validation=0.0, generator_hidden=(128,),
            critic_hidden=(128,), generator_lr=5e-4, critic_lr=5e-4, ema_decay=0.0, r1_weight=0.0, whole_counts=False,
            beta1=0.9, divergence="fisher_ratio",
        ),
    },
    "vae": {
        "tuned": VaeParams(),
        "paper": VaeParams(
            budget=2001, budget_in="epochs", batch_size=64, validation=0.0, latent_dim=100, encoder_hidden=(32,),
            decoder_hidden=(32,), lr=1e-4, likelihood="squared_error", reduce="mean", warmup=0,
        ),
    },
    "lsh_gan": {
        "tuned": LshGanParams(),
        "paper": LshGanParams(
            budget=20010, batch_size=64, validation=0.0, generator_hidden=(16, 16), critic_hidden=(16, 16),
            generator_lr=1e-3, critic_lr=1e-3, critic_steps=10, generator_steps=10, ema_decay=0.0, r1_weight=0.0,
            whole_counts=False, generate_from="noise",
        ),
    },
    "scgan": {
        "tuned": ScganParams(batch_size=64),
        "paper": ScganParams(
            budget=1000, batch_size=64, validation=0.0, latent_dim=100, generator_hidden=(256, 512, 1024),
            critic_hidden=(512, 256), critic_steps=5, generator_lr=1e-4, critic_lr=1e-4, ema_decay=0.0,
            whole_counts=False,
        ),
    },
    "scvae": {
        "tuned": ScvaeParams(),
        "paper": ScvaeParams(
            budget=200, batch_size=64, validation=0.0, latent_dim=64, hidden=(256, 128, 64), lr=1e-4, kl_weight=0.1,
            warmup=0,
        ),
    },
    "scdiffusion": {
        "tuned": ScdiffusionParams(),
        "paper": ScdiffusionParams(
            budget=200, batch_size=64, validation=0.0, autoencoder_steps=200, denoiser_hidden=(512, 256),
            diffusion_steps=100, guidance=2.0, lr=1e-4, ema_decay=0.0,
        ),
    },
    "gan_ros": {
        "tuned": GanParams(),
        "paper": GanParams(
            budget=200, budget_in="epochs", batch_size=64, validation=0.0, generator_hidden=(32,), critic_hidden=(32,),
            generator_lr=1e-4, critic_lr=1e-4, ema_decay=0.0, r1_weight=0.0, whole_counts=False, beta1=0.9,
        ),
    },
    "vae_ros": {
        "tuned": VaeParams(),
        "paper": VaeParams(
            budget=200, budget_in="epochs", batch_size=64, validation=0.0, latent_dim=100, encoder_hidden=(32,),
            decoder_hidden=(32,), lr=1e-4, likelihood="squared_error", reduce="sum", warmup=0,
        ),
    },
}  # fmt: skip
"""presets of each baseline; `paper` has the published settings"""
