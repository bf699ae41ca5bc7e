"""The scripts that make tables and figures of finished runs: numbers by hand, every gap in sight, errors that help."""

import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from analysis import (
    aggregate_losses,
    build_summary_tables,
    distribution_metrics,
    plot_tradeoff,
    plot_wasserstein_vs_leakage,
)
from benchmarking.controls import DEFAULT_CONTROLS
from common.evaluation import ALL, RARE
from common.metrics.fidelity import compare_on, median_squared_distance, mmd, pooled_pcs
from common.results import COLUMNS
from common.runs import load_run

SPLIT = "holdout 0.5, 20 genes"


def refused(capsys, main, *flags):
    """Run a script, which must leave with one line about the error; return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(flag) for flag in flags])
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], lines
    return lines[-1]


# ---------------------------------------------------------------------------------------------- distribution_metrics


@pytest.fixture(scope="module")
def distances(toy_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("distances") / "distribution_metrics.csv"
    distribution_metrics.main(["--runs", str(toy_runs / "seed0"), str(toy_runs / "seed1"), "--out", str(path)])
    return pd.read_csv(path)


def test_distances_of_every_run_and_control(distances):
    assert set(distances) == {*COLUMNS, "leakage", "labels", "made_of"} and set(distances["labels"]) == {"given"}
    assert set(distances["method"]) == {"garage", *DEFAULT_CONTROLS}
    assert len(distances) == 2 * (1 + len(DEFAULT_CONTROLS)) * 2 * 2
    assert set(distances["metric"]) == {"mmd_pcs", "sliced_w1_pcs"}
    assert distances.loc[distances["group"] == RARE, "n"].eq(4).all()
    mean = distances.groupby(["group", "metric", "method"])["value"].mean()[ALL]
    assert (mean[:, "real_half"] < mean[:, "gene_wise_normal"]).all()
    assert (mean[:, "real_half"] < mean[:, "all_zeros"]).all()


def test_distances_of_rare_cells(distances, toy_runs):
    """On components of held-out and synthetic cells of all types, with the bandwidth of the held-out rare cells."""
    run = load_run(toy_runs / "seed0")
    held, made = pooled_pcs(compare_on(run.held), compare_on(run.synthetic))
    held, made = (
        pcs[(cells.obs["cell_type"] == "NK").to_numpy()] for pcs, cells in ((held, run.held), (made, run.synthetic))
    )
    found = distances.query("method == 'garage' and seed == 0 and metric == 'mmd_pcs'").set_index("group")["value"]
    assert found[RARE] == pytest.approx(mmd(held, made, unit=median_squared_distance(held)))
    assert found[RARE] != pytest.approx(found[ALL])


def test_distances_without_rare_cells_are_unknown(toy_runs):
    run = load_run(toy_runs / "seed0")
    common = run.synthetic[run.synthetic.obs["cell_type"] != "NK"].copy()
    run = type(run)(**{**vars(run), "synthetic": common})
    found = distribution_metrics.distribution_distances(run).set_index("group")["value"]
    assert found[RARE].isna().all() and found[ALL].notna().all()


def test_distances_of_a_run_that_is_not_there(tmp_path, capsys):
    line = refused(capsys, distribution_metrics.main, "--runs", tmp_path / "no", "--out", tmp_path / "t.csv")
    assert "make it with python data_generation/garage.py --holdout 0.5" in line


# ---------------------------------------------------------------------------------------------- aggregate_losses


@pytest.fixture
def losses(toy_runs, tmp_path):
    """Two runs with losses that can be summed by hand, of 0 to 39 steps; the critic joins at 20."""
    for seed in (0, 1):
        folder = shutil.copytree(toy_runs / f"seed{seed}", tmp_path / f"seed{seed}")
        steps = np.arange(40)
        table = pd.DataFrame({"step": steps, "nll": 100.0 - steps + seed, "critic": np.where(steps < 20, np.nan, 2.0)})
        table.to_csv(folder / "losses.csv", index=False)
    return tmp_path


def aggregate(folder, *runs):
    aggregate_losses.main(["--runs", *(str(folder / run) for run in runs), "--out", str(folder / "t" / "losses.csv")])
    return pd.read_csv(folder / "t" / "losses.csv"), pd.read_csv(folder / "t" / "losses_summary.csv")


def test_statistics_of_losses(losses):
    table, _ = aggregate(losses, "seed0", "seed1")
    assert list(table) == [
        "dataset", "split", "seed", "method", "leakage", "term", "mean", "sd", "min", "max", "final", "steps",
    ]  # fmt: skip
    assert len(table) == 4 and set(table["leakage"]) == {0.2} and set(table["method"]) == {"garage"}
    row = table.query("seed == 1 and term == 'nll'").iloc[0]
    values = 101.0 - np.arange(40)
    assert row["max"] == 101  # of step 0
    assert row["steps"] == 40
    assert (row["min"], row["mean"]) == (values.min(), values.mean())
    assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert row["final"] == values[-2:].mean()  # 5 % of 40
    row = table.query("seed == 0 and term == 'critic'").iloc[0]
    assert (row["mean"], row["sd"], row["final"], row["steps"]) == (2, 0, 2, 20)


def test_losses_over_seeds(losses):
    _, summary = aggregate(losses, "seed0", "seed1")
    assert list(summary) == [
        "dataset", "split", "method", "leakage", "term", "statistic", "mean", "sd", "seeds", "missing",
    ]  # fmt: skip
    row = summary.query("term == 'nll' and statistic == 'max'").iloc[0]
    assert (row["mean"], row["sd"], row["seeds"], row["missing"]) == (100.5, pytest.approx(0.5**0.5), 2, 0)


def test_losses_that_are_no_numbers_stay_in_sight(losses):
    path = losses / "seed1" / "losses.csv"
    table = pd.read_csv(path)
    table.loc[30:, "nll"] = np.nan
    table["unused"] = np.nan
    table.to_csv(path, index=False)
    table, summary = aggregate(losses, "seed0", "seed1")
    assert table.query("seed == 1 and term == 'nll'")[["mean", "sd", "min", "max", "final"]].isna().all(axis=None)
    assert table.query("term == 'unused'")["steps"].tolist() == [0]
    row = summary.query("term == 'nll' and statistic == 'final'").iloc[0]
    assert (row["mean"], row["seeds"], row["missing"]) == (61.5, 1, 1)


def test_losses_of_real_runs(toy_runs, tmp_path, capsys):
    aggregate_losses.main(["--runs", str(toy_runs / "seed0"), "--out", str(tmp_path / "losses.csv")])
    table = pd.read_csv(tmp_path / "losses.csv")
    written = pd.read_csv(toy_runs / "seed0" / "losses.csv")
    assert set(table["term"]) == set(written.columns) - {"step"}
    assert table.set_index("term").loc["nll", "mean"] == pytest.approx(written["nll"].mean())
    said = capsys.readouterr().out
    assert "garage, leakage 20%" in said and f"wrote {tmp_path / 'losses.csv'} and losses_summary.csv" in said


def test_complaints_about_losses(losses, capsys):
    def complaint(*runs):
        out = losses / "t" / "losses.csv"
        return refused(capsys, aggregate_losses.main, "--runs", *(losses / run for run in runs), "--out", out)

    assert "make it with python data_generation/garage.py" in complaint("seed7")
    shutil.copytree(losses / "seed0", losses / "copy")
    assert "would be one in the table: give one of them another --name" in complaint("seed0", "copy")
    (losses / "copy" / "losses.csv").write_text("step,nll\n")
    assert "has no losses" in complaint("copy")
    (losses / "copy" / "losses.csv").write_text("step,nll\n1,x\n")
    assert "is no readable table of losses" in complaint("copy")
    (losses / "copy" / "losses.csv").unlink()
    assert "losses.csv is missing: repeat the run with python data_generation/garage.py" in complaint("copy")
    assert not (losses / "t").exists()


# ---------------------------------------------------------------------------------------------- build_summary_tables


SCORES = {  # method: rf_auroc_genes and w1_pcs of seeds 0 to 4; None: not run
    "garage": ([0.55, 0.56, 0.54, None, 0.55], [5.1, 5.2, 5.3, 5.2, 5.2]),
    "gan_1": ([0.9, 0.91, 0.92, 0.9, 0.9], [5.2, 5.3, 5.1, 5.2, 5.2]),
    "real_half": ([0.5, 0.49, 0.51, 0.5, 0.5], [5.0, 5.0, 5.0, 5.0, 5.0]),
    "poisson": ([0.7, 0.7, 0.7, 0.7, 0.7], [np.nan] * 5),
}


def rows_of(dataset, scores, split=SPLIT, group=ALL):
    return pd.DataFrame([
        (dataset, split, seed, method, group, metric, 9, value)
        for method, columns in scores.items()
        for metric, values in zip(("rf_auroc_genes", "w1_pcs"), columns, strict=True)
        for seed, value in enumerate(values)
        if value is not None
    ], columns=COLUMNS)  # fmt: skip


@pytest.fixture
def results(tmp_path):
    rare = rows_of("toy", {"garage": ([0.6, 0.7], [3.0, 4.0])}, group=RARE)
    pd.concat([rows_of("toy", SCORES), rare]).to_csv(tmp_path / "evaluation.csv", index=False)
    return tmp_path


def build(folder, *flags):
    build_summary_tables.main(["--table", str(folder / "evaluation.csv"), "--out", str(folder), *flags])


def markdown(path):
    """Return caption, head and body of a table in Markdown."""
    caption, _, head, line, *body = path.read_text().splitlines()
    assert set(line) <= set("|-: ")
    cut = [[field.strip() for field in row.strip("|").split(" | ")] for row in (head, *body)]
    assert {len(row) for row in cut} == {len(cut[0])}
    return caption, cut[0], {row[0]: row[1:] for row in cut[1:]}


def test_table_in_long_form_holds_full_precision_and_gaps(results):
    build(results)
    table = pd.read_csv(results / "summary_toy.csv")
    assert list(table) == ["dataset", "split", "group", "method", "metric", "mean", "sd", "seeds", "missing", "labels"]
    assert len(table) == 4 * 2
    row = table.query("method == 'garage' and metric == 'rf_auroc_genes'").iloc[0]
    values = [0.55, 0.56, 0.54, 0.55]
    assert (row["mean"], row["sd"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (row["seeds"], row["missing"]) == (4, 1)
    row = table.query("method == 'poisson' and metric == 'w1_pcs'").iloc[0]
    assert np.isnan(row["mean"]) and (row["seeds"], row["missing"]) == (0, 5)


def test_methods_that_are_not_told_the_type_are_marked(results):
    path = results / "evaluation.csv"
    table = pd.read_csv(path)
    table.assign(labels=np.where(table["method"] == "gan_1", "classifier", "given")).to_csv(path, index=False)
    build(results)
    caption, _, body = markdown(results / "summary_toy.md")
    assert "†: not told the cell type" in caption and "gan\\_1 †" in body and "garage" in body
    assert r"gan\_1 $^\dagger$ &" in (results / "summary_toy.tex").read_text()


def test_table_in_markdown(results):
    build(results)
    caption, head, body = markdown(results / "summary_toy.md")
    assert caption.startswith(f"toy ({SPLIT}), all cells: mean ± sd over 5 seeds.")
    assert head == ["method", "forest, genes ↓ 0.5", "W1, PCs ↓"]
    assert list(body) == ["gan\\_1", "garage", "*controls*", "real\\_half", "poisson"]
    assert body["garage"] == ["**0.550 ± 0.008** (4 of 5)", "**5.20 ± 0.07**"]
    assert body["gan\\_1"] == ["0.906 ± 0.009", "**5.20 ± 0.07**"]  # ties
    assert body["real\\_half"] == ["0.500 ± 0.007", "5.00 ± 0.00"]  # better, but a control
    assert body["poisson"] == ["0.700 ± 0.000", "—"]


def test_table_in_latex(results):
    build(results)
    lines = (results / "summary_toy.tex").read_text().splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in body] == [2] * 5
    assert lines[3] == r"\begin{tabular}{lrr}"
    for begin, end in (("{", "}"), (r"\begin{", r"\end{")):
        assert "".join(lines).count(begin) == "".join(lines).count(end)
    assert [line for line in lines if line.endswith("rule")] == [
        r"\toprule", r"\midrule", r"\midrule", r"\bottomrule",
    ]  # fmt: skip
    assert body[1] == r"gan\_1 & $0.906 \pm 0.009$ & $\mathbf{5.20} \pm 0.07$ \\"
    assert body[2] == r"garage & $\mathbf{0.550} \pm 0.008$ (4 of 5) & $\mathbf{5.20} \pm 0.07$ \\"
    assert body[4] == r"poisson & $0.700 \pm 0.000$ & --- \\"
    assert lines.index(body[3]) == lines.index(body[2]) + 2  # a line between methods and controls
    assert all("".join(lines).replace(rf"\{special}", "").count(special) == 0 for special in "_%#")
    assert "".join(lines).isascii()


def test_table_of_a_method_alone_has_nothing_bold(results):
    build(results, "--group", RARE)
    _, _, body = markdown(results / "summary_toy_rare_cells.md")
    assert body["garage"] == ["0.650 ± 0.071 (2 of 5)", "3.50 ± 0.71 (2 of 5)"]
    assert body["poisson"] == ["—", "—"]  # not there, but not hidden
    assert r"\mathbf" not in (results / "summary_toy_rare_cells.tex").read_text()


def test_best_is_nearest_to_the_ideal():
    found = build_summary_tables.find_best
    assert found(pd.Series({"a": 0.4, "b": 0.6, "c": 0.5, "d": np.nan}), "rf_auroc_genes", 2) == {"a", "c"}
    assert found(pd.Series({"a": 0.8, "b": 1.1, "c": 1.4}), "density_pcs", 2) == {"b"}
    assert found(pd.Series({"a": 0.8, "b": 0.9}), "coverage_pcs", 2) == {"b"}
    assert found(pd.Series({"a": 0.901, "b": 0.899}), "coverage_pcs", 2) == {"a", "b"}  # as displayed
    assert found(pd.Series({"a": 0.8, "b": np.nan}), "coverage_pcs", 2) == set()
    assert found(pd.Series({"a": 0.8, "b": 0.9}), "nobody_knows", 2) == set()


@pytest.mark.parametrize("metric, head", [
    ("coverage_pcs", "coverage ↑"), ("density_pcs", "density ≈ 1"), ("mmd_pcs", "MMD², PCs ↓ 0"),
    ("record_distance", "record distance ↑"), ("ari", "ARI of clusters"), ("nobody_knows", "nobody_knows"),
])  # fmt: skip
def test_direction_of_a_column(metric, head):
    assert build_summary_tables.head_of(metric) == head


def test_columns_in_the_order_of_the_catalogue_and_chosen(results):
    table = pd.read_csv(results / "evaluation.csv")
    more = table[table["metric"] == "w1_pcs"].assign(metric="a_thing")
    pd.concat([more, table.iloc[::-1]]).to_csv(results / "evaluation.csv", index=False)
    build(results)
    assert markdown(results / "summary_toy.md")[1] == ["method", "forest, genes ↓ 0.5", "W1, PCs ↓", "a\\_thing"]
    build(results, "--metrics", "w1_pcs")
    assert markdown(results / "summary_toy.md")[1] == ["method", "W1, PCs ↓"]
    build(results, "--families", "privacy")
    assert markdown(results / "summary_toy.md")[1] == ["method", "a\\_thing"]


def test_a_table_for_each_data_set(results):
    table = pd.read_csv(results / "evaluation.csv")
    other = rows_of("x%y", {"a": ([0.5], [1.0])}, group="CD4+/CD25 T & B_1")
    pd.concat([table, other, rows_of("x%y", {"a": ([0.5], [1.0])})]).to_csv(results / "evaluation.csv", index=False)
    build(results)
    assert {"summary_toy.md", "summary_x%y.md"} <= {path.name for path in results.iterdir()}
    assert "over 1 seed." in markdown(results / "summary_x%y.md")[0]
    build(results, "--group", "CD4+/CD25 T & B_1")  # only one of them has it
    made = results / "summary_x%y_CD4+_CD25_T_B_1.tex"
    assert r"\caption{x\%y (holdout 0.5, 20 genes), CD4+/CD25 T \& B\_1: mean" in made.read_text()


def test_complaints_about_tables(results, capsys):
    def complaint(*flags):
        out = ["--table", results / "evaluation.csv", "--out", results, *flags]
        return refused(capsys, build_summary_tables.main, *out)

    assert "did you mean 'rare cells'?" in complaint("--group", "rare_cells")
    assert "did you mean 'w1_pcs'?" in complaint("--metrics", "w1_pc")
    assert "choose other --families" in complaint("--families", "privacy")
    assert "has no group 'all cells' in that split" in complaint("--split", "thirds")
    table = pd.read_csv(results / "evaluation.csv")
    pd.concat([table, table.assign(split="thirds")]).to_csv(results / "evaluation.csv", index=False)
    assert f"choose one with --split, of '{SPLIT}', 'thirds'" in complaint()
    (results / "evaluation.csv").unlink()
    assert "evaluation.csv is missing: make it with python analysis/evaluate.py" in complaint()
    assert not list(results.glob("summary*"))
    pd.concat([table, table.assign(split="thirds")]).to_csv(results / "evaluation.csv", index=False)
    build(results, "--split", "thirds")
    assert set(pd.read_csv(results / "summary_toy.csv")["split"]) == {"thirds"}


# ------------------------------------------------------------------------------------ plot_wasserstein_vs_leakage


def leaky(dataset="toy", levels=(0.0, 0.1, 0.2, 0.3), rival=5.6):
    """Rows as of wasserstein_distance.py: three seeds, higher levels higher; the last seed lacks the last level."""
    shifts = (-0.1, 0.0, 0.1)
    rows = [
        (dataset, SPLIT, seed, f"garage_leakage{level:g}", ALL, "w1_pcs", 9, 5 + level + shift, level)
        for level in levels
        for seed, shift in enumerate(shifts)
        if (seed, level) != (2, 0.3)
    ]
    rows += [
        (dataset, SPLIT, seed, method, ALL, "w1_pcs", 9, value + shift, np.nan)
        for method, value in {"real_half": 4.8, "copula": rival, "all_zeros": 50.0}.items()
        for seed, shift in enumerate(shifts)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "leakage"])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the script made."""
    made = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(plot_wasserstein_vs_leakage, "Figure", Kept)
    return made


def plot(folder, rows, *flags):
    rows.to_csv(folder / "wasserstein.csv", index=False)
    out = folder / "figures" / "wasserstein_vs_leakage"
    plot_wasserstein_vs_leakage.main(["--table", str(folder / "wasserstein.csv"), "--out", str(out), *flags])


def test_figure(tmp_path, drawn):
    plot(tmp_path, leaky())
    picture = imread(tmp_path / "figures" / "wasserstein_vs_leakage.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
    assert (tmp_path / "figures" / "wasserstein_vs_leakage.pdf").read_bytes().startswith(b"%PDF")
    (axes,) = drawn[0].axes
    (bars,) = axes.containers
    np.testing.assert_allclose(bars[0].get_xydata(), [[0, 5.0], [10, 5.1], [20, 5.2], [30, 5.25]])
    heights = [np.ptp(segment[:, 1]) for segment in bars[2][0].get_segments()]
    np.testing.assert_allclose(heights, 2 * np.array([0.1, 0.1, 0.1, 0.005**0.5]))
    assert len(axes.collections[0].get_offsets()) == 11  # each seed
    (band,) = axes.patches
    low, height = band.get_y(), band.get_height()
    assert (low, height) == (pytest.approx(4.7), pytest.approx(0.2))  # mean ± sd of the real half
    assert [text.get_text() for text in axes.texts] == ["2 of 3 seeds"]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed[0].get_ydata(), 5.6)
    assert axes.get_ylim()[1] < 10  # the zeros do not flatten the rest


def test_a_far_copula_is_told_not_drawn(tmp_path, drawn):
    plot(tmp_path, leaky(rival=9.0))
    (axes,) = drawn[0].axes
    assert not [line for line in axes.lines if line.get_linestyle() == "--"]
    assert "copula: 9, off the axis" in [text.get_text() for text in axes.texts]


def test_a_control_that_failed_is_no_curve(tmp_path, drawn):
    failed = leaky(levels=[0.2]).assign(method="poisson", value=np.nan, leakage=0.2)
    plot(tmp_path, pd.concat([leaky(), failed]))
    assert len(drawn[0].axes[0].containers) == 1


def test_a_panel_a_data_set_and_a_curve_a_method(tmp_path, drawn, capsys):
    paper = leaky()[lambda rows: rows["leakage"].notna()]
    paper = paper.assign(method=paper["method"].str.replace("garage", "paper"), value=paper["value"] + 1)
    # one at the default leakage need not be named for it
    rows = leaky().replace({"method": {"garage_leakage0.2": "garage"}})
    plot(tmp_path, pd.concat([rows, paper, leaky("other"), leaky("alone", levels=[0.2])]))
    assert [axes.get_title().splitlines()[0] for axes in drawn[0].axes] == ["other", "toy"]
    assert [len(axes.containers) for axes in drawn[0].axes] == [1, 2]
    for bars in drawn[0].axes[1].containers:
        assert list(bars[0].get_xdata()) == [0, 10, 20, 30]
    assert f"note: alone ({SPLIT}) has runs at one leakage only" in capsys.readouterr().err


def test_complaints_about_the_figure(tmp_path, capsys):
    def complaint(rows, *flags):
        rows.to_csv(tmp_path / "t.csv", index=False)
        main = plot_wasserstein_vs_leakage.main
        return refused(capsys, main, "--table", tmp_path / "t.csv", "--out", tmp_path / "f", *flags)

    line = complaint(leaky(levels=[0.2]))
    assert "garage.py --holdout 0.5 --leakage 0 --name garage_leakage0" in line
    assert "then python data_generation/wasserstein_distance.py --runs DIR..." in line
    assert "no runs at different leakages" in complaint(leaky(levels=[]))
    assert "no column leakage" in complaint(leaky().drop(columns="leakage"))
    assert "did you mean 'w1_pcs'?" in complaint(leaky(), "--metric", "w1_pc")
    assert "did you mean 'garage_leakage0.1'?" in complaint(leaky(), "--methods", "garage_leakage.1")
    again = leaky(levels=[0.2]).replace({"method": {"garage_leakage0.2": "garage"}})
    assert "have the same leakage and seed of toy: choose with --methods" in complaint(pd.concat([leaky(), again]))
    assert "has no rows of real_half" in complaint(leaky()[lambda rows: rows["method"] != "real_half"])
    (tmp_path / "t.csv").unlink()
    line = refused(capsys, plot_wasserstein_vs_leakage.main, "--table", tmp_path / "t.csv")
    assert "make it with python data_generation/wasserstein_distance.py" in line
    assert not list(tmp_path.glob("f.*"))


# ---------------------------------------------------------------------------------------------------- plot_tradeoff


@pytest.fixture
def judged(tmp_path):
    """Table of two data sets: forest's and W1's values of five splits; the second has one split and no real half."""
    scores = {
        "garage": ([0.55, 0.57], [5.0, 5.2]), "copula": ([0.7, 0.8], [5.4, 5.4]),
        "copula_calibrated": ([0.6, 0.6], [5.3, 5.3]), "poisson": ([0.9, 0.9], [6.0, 6.0]),
        "real_half": ([0.5, 0.52], [4.9, 5.1]), "smote": ([0.8, None], [None, None]),
    }  # fmt: skip
    alone = {name: ([first], [second]) for name, ((first, _), (second, _)) in scores.items() if name != "real_half"}
    pd.concat([rows_of("toy", scores), rows_of("other", alone)]).to_csv(tmp_path / "benchmark.csv", index=False)
    return tmp_path


def points_of(axes):
    """Method -> position of its point, as drawn."""
    return {bars.get_label(): tuple(bars[0].get_xydata()[0]) for bars in axes.containers}


def trade(folder, *flags):
    axes = "--x", "rf_auroc_genes", "--y", "w1_pcs"
    plot_tradeoff.main(["--table", str(folder / "benchmark.csv"), "--out", str(folder / "t.png"), *axes, *flags])


def test_a_point_is_a_methods_mean_and_the_real_half_a_band(judged, drawn, monkeypatch):
    monkeypatch.setattr(plot_tradeoff, "Figure", plot_wasserstein_vs_leakage.Figure)
    trade(judged)
    other, toy = drawn[0].axes[:2]
    assert (other.get_title(), toy.get_title()) == ("other", "toy")
    # neither the control nor what lacks one of the two metrics
    found = points_of(toy)
    assert set(found) == {"garage", "copula", "copula_calibrated"}
    assert found["garage"] == (pytest.approx(0.56), pytest.approx(5.1))
    (band,) = toy.patches
    assert band.get_y() == pytest.approx(5 - 0.02**0.5) and band.get_height() == pytest.approx(2 * 0.02**0.5)
    assert points_of(other)["copula"] == (0.7, 5.4) and not other.patches
    hollow = {bars.get_label(): bars[0].get_markerfacecolor() for bars in toy.containers}
    assert hollow["copula_calibrated"] == "white" != hollow["copula"]
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["garage", "copula", "copula_calibrated", "real training half"]
    assert imread(judged / "t.png").std() > 0.05


def test_methods_keep_their_colour_however_many_there_are():
    names = [f"m{i}" for i in range(40)]
    styles = plot_tradeoff.styles_of([*names, "m3_calibrated", "garage"])
    assert set(styles) == {*names, "m3_calibrated", "garage"}
    assert styles["m3"]["color"] == styles["m3_calibrated"]["color"]


def test_complaints_about_the_tradeoff(judged, capsys):
    def complaint(*flags):
        return refused(
            capsys, plot_tradeoff.main, "--table", judged / "benchmark.csv", "--out", judged / "u.png", *flags
        )

    assert "has no metric 'calibrated_auc'" in complaint()
    drawn = ["--x", "rf_auroc_genes", "--y", "w1_pcs"]
    assert "did you mean 'rf_auroc_genes'?" in complaint("--x", "rf_auroc_gene")
    assert "has no group 'B'" in complaint("--group", "B", *drawn)
    assert "has no method 'gan'" in complaint("--methods", "gan", *drawn)
    assert "no method has both rf_auroc_genes and w1_pcs" in complaint("--methods", "poisson", *drawn)
    assert not list(judged.glob("u.*"))
