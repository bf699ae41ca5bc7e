"""The page about runs: it says what was measured, hides no gap, fetches nothing, and no name in it is code."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import anndata
import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import make_toy
from playwright.sync_api import sync_playwright
from sklearn.metrics import roc_auc_score
from test_analysis import refused

from analysis import report, report_figures
from analysis.privacy_verdict import describe_shortage, judge_privacy
from analysis.report_figures import COLORS, MOST_CELLS, SYNTHETIC, cell_map
from benchmarking.controls import DEFAULT_CONTROLS
from common.metrics.catalogue import ALL, FAMILIES, HELD, METRICS, OTHERS, RARE, SEEDS
from common.plotting import embed
from common.results import COLUMNS
from common.runs import load_run
from data_generation import garage

SPLIT = "holdout 0.5, 20 genes"
CHROMIUM = shutil.which("chromium") or ""
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """What a page loads, its elements by name, its scripts, and its text."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.tags, self.scripts, self.words, self.ids = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        self.loads += [given[name] for name in ("src", "href", "action", "data", "poster", "srcset") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags[-1:] and self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.words.append(data)

    @property
    def figures(self):
        return json.loads(self.scripts[0])


def anywhere(real, synthetic, *, seed):
    return np.random.default_rng(seed).random((real.n_obs + synthetic.n_obs, 2))


@pytest.fixture(scope="module", autouse=True)
def quick_map():
    """Any coordinates do, where the map is not what is tested: UMAP takes seconds to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_figures, "embed", anywhere)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Values of every metric for the first toy run and the controls, as they might be."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("table") / "table.csv"
    pd.DataFrame([
        ("toy", SPLIT, 0, method, group, metric, 36, rng.uniform(max(about.low, 0), min(about.high, 2)), "given")
        for method in ("garage", *DEFAULT_CONTROLS)
        for metric, about in METRICS.items()
        for group in (ALL, RARE, "NK", SEEDS, OTHERS, HELD)
    ], columns=[*COLUMNS, "labels"]).to_csv(path, index=False)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def made(table, toy_runs, tmp_path_factory):
    """A page about the first toy run."""
    out = tmp_path_factory.mktemp("report") / "page.html"
    report.main(["--run", str(toy_runs / "seed0"), "--table", str(table), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def page(made):
    return Page(made)


def write(out, run, *flags):
    report.main(["--run", str(run), "--out", str(out), *map(str, flags)])
    return Page(out)


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory):
    """A run that held nothing out, one of whose types has a name that is code."""
    folder, cells = tmp_path_factory.mktemp("unjudged"), make_toy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"T": HOSTILE})
    cells.write_h5ad(folder / "toy.h5ad")
    garage.main([
        "--input", str(folder / "toy.h5ad"), "--out", str(folder / "run"), "--gat-epochs", "5", "--anchor-epochs", "2",
        "--critic-steps", "2", "--calibration-cells", "60", "--device", "cpu",
    ])  # fmt: skip
    return folder / "run"


def value_in(path, metric, method, group=ALL):
    return pd.read_csv(path).query("metric == @metric and method == @method and group == @group")["value"].item()


def test_every_metric_with_its_controls_and_what_it_means(table, page):
    for about in METRICS.values():
        assert about.label in page.text and about.meaning in page.text
    heads = re.findall(r"metric garage ((?:\w+ )+)", page.text)
    assert heads[0].split()[:3] == ["copula", "real_half", "all_zeros"]  # at a glance
    assert set(DEFAULT_CONTROLS) <= set(heads[1].split())
    row = re.search(r"LISI ↑ How mixed .*? real cells are\. ([\d. ]+)", page.text)
    shown = dict(zip(["garage", *heads[1].split()], map(float, row[1].split()), strict=False))
    for method in ("garage", "real_half", "poisson"):
        assert shown[method] == pytest.approx(value_in(table, "lisi_pcs", method), abs=0.006)


@pytest.mark.slow
def test_metrics_are_computed_where_no_table_is_given(toy_runs, tmp_path, monkeypatch, few_trees):
    """And kept beside the page, which is the same when it is made again; the map is a real one."""
    assert report.DEFAULT_CONTROLS == DEFAULT_CONTROLS
    few = ("real_half", "all_zeros", "copula")  # each takes seconds
    monkeypatch.setattr(report, "DEFAULT_CONTROLS", few)
    monkeypatch.setattr(report_figures, "embed", embed)
    page = write(tmp_path / "page.html", toy_runs / "seed0")
    kept = pd.read_csv(tmp_path / "page.csv")
    assert set(kept["method"]) == {"garage", *few}
    assert {METRICS[metric].family for metric in kept["metric"]} == set(FAMILIES)
    assert "1.00 with real_half" in page.text
    write(tmp_path / "again.html", toy_runs / "seed0", "--table", tmp_path / "page.csv")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_what_was_run(page, toy_runs):
    record = json.loads((toy_runs / "seed0" / "run.json").read_text())
    for said in (
        "python data_generation/garage.py --input", "--gat-epochs 12", *record["versions"].values(),
        *record["sha256"].values(), "holdout 0.5, 20 genes", str(record["params"]["leakage"]),
    ):  # fmt: skip
        assert said in page.text


def test_seeds_composition_and_losses(page, toy_runs):
    seeds = pd.read_csv(toy_runs / "seed0" / "seeds.csv")
    n = int(seeds.query("cell_type == 'T'")["is_seed"].sum())
    assert f"T 20 {n} {n / 20:.0%}" in page.text
    assert re.search(r"T 20 20 \d+ 55\.6% 55\.6% ", page.text)  # of 36 training and 36 held-out cells
    losses = pd.read_csv(toy_runs / "seed0" / "losses.csv")
    drawn = page.figures["run-1-losses"]["data"]
    assert len(drawn) == losses.shape[1] - 1
    shown = page.figures["run-1-attention"]["data"]
    assert [len(trace["text"]) for trace in shown] == [(~seeds["is_seed"]).sum(), seeds["is_seed"].sum()]


def test_map_holds_every_cell_by_kind_and_type(page, toy_runs):
    run = load_run(toy_runs / "seed0")
    found = {}
    for trace in page.figures["run-1-map"]["data"]:
        key = trace["meta"]["kind"], trace["meta"]["type"]
        found[key] = len(trace["text"])
    assert sum(found.values()) == run.train.n_obs + run.held.n_obs + run.synthetic.n_obs
    assert found["held-out cells", "NK"] == 4
    assert found["seed cells", "T"] + found["other training cells", "T"] == 20


def test_a_map_of_many_cells_keeps_the_rare_ones(toy_runs):
    run = load_run(toy_runs / "seed0")
    many = anndata.concat([run.synthetic] * (MOST_CELLS // run.synthetic.n_obs + 1), index_unique="-")
    rare = (many.obs["cell_type"] == "NK").to_numpy().sum()
    figure, drawn, _ = cell_map(type(run)(**{**vars(run), "synthetic": many}), ["T", "B", "NK"], ["NK"])
    kinds = {(trace["meta"]["kind"], trace["meta"]["type"]): len(trace["text"]) for trace in figure["data"]}
    assert drawn["synthetic cells"] == MOST_CELLS < many.n_obs
    assert kinds["synthetic cells", "NK"] == rare > 0


def test_a_page_loads_nothing_and_names_each_place_once(page):
    assert page.loads and all(target.startswith("#") for target in page.loads)
    assert {target[1:] for target in page.loads} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    policy = next(given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_a_run_without_held_out_cells_has_a_page_that_says_so(unjudged, capsys):
    report.main(["--run", str(unjudged)])
    page = Page(unjudged / "report.html")
    assert "was not judged: it learnt from every cell" in page.text and "--holdout 0.5" in page.text
    assert "Privacy was not judged." in page.text
    assert "wrote" in capsys.readouterr().out
    assert {name.removeprefix("run-1-") for name in page.figures} == {"map", "composition", "attention", "losses"}
    assert not (unjudged / "report.csv").exists()


def test_names_are_no_code(unjudged, tmp_path):
    page = write(tmp_path / "page.html", unjudged)
    assert HOSTILE in page.text  # shown as it is
    assert len(page.scripts) == 3 and not any("alert" in script for script in page.scripts[1:])
    assert HOSTILE not in page.scripts[0] and "alert" in page.scripts[0]
    hovers = [text for trace in page.figures["run-1-map"]["data"] for text in trace["text"]]
    assert any("&lt;script&gt;" in text for text in hovers) and not any("<script>" in text for text in hovers)


def test_runs_side_by_side(table, toy_runs, unjudged, tmp_path):
    """Of two seeds, with a gap where a control was not judged; a run without held-out cells may be among them."""
    rows = pd.read_csv(table)
    pd.concat([rows, rows[rows["method"] == "garage"].assign(seed=1)]).to_csv(tmp_path / "two.csv", index=False)
    page = write(
        tmp_path / "page.html", toy_runs / "seed0", "--compare", toy_runs / "seed1", unjudged,
        "--table", tmp_path / "two.csv",
    )  # fmt: skip
    assert "3 runs side by side" in page.text and "seeds 0, 1" in page.text
    assert "± 0.00" in page.text and "(1 of 2)" in page.text
    assert "garage, toy, seed 1" in page.text and "was not judged" in page.text
    assert {name.split("-")[1] for name in page.figures} == {"1", "2", "3"}
    assert len(set(page.ids)) == len(page.ids)


def test_a_run_without_seeds_and_losses(table, toy_runs, tmp_path):
    folder = shutil.copytree(toy_runs / "seed0", tmp_path / "run")
    (folder / "seeds.csv").unlink()
    (folder / "losses.csv").unlink()
    record = json.loads((folder / "run.json").read_text()) | {"method": "mine", "baseline": "wgan", "notes": ["<b>odd"]}
    del record["files"]["seeds.csv"], record["checksum"]
    (folder / "run.json").write_text(json.dumps(record))
    pd.read_csv(table).replace({"method": {"garage": "mine"}}).assign(labels="classifier").to_csv(
        tmp_path / "t.csv", index=False
    )
    page = write(tmp_path / "page.html", folder, "--table", tmp_path / "t.csv")
    assert "This generator has no seeds." in page.text and "losses.csv is missing" in page.text
    assert "python benchmarking/sota/wgan.py" in page.text and "<b>odd" in page.text
    assert "mine †" in page.text and "†: not told the cell type" in page.text
    assert {name.removeprefix("run-1-") for name in page.figures} == {"map", "composition"}


def test_complaints(table, toy_runs, tmp_path, capsys):
    def complaint(*flags):
        return refused(capsys, report.main, *flags, "--out", tmp_path / "page.html")

    run = toy_runs / "seed0"
    assert "holds no finished run: make it with" in complaint("--run", tmp_path / "no")
    assert "no.csv is missing: make it with python analysis/evaluate.py" in complaint("--run", run, "--table", "no.csv")
    assert "leave out --table" in complaint("--run", toy_runs / "seed1", "--table", table)
    assert "cannot tell" in complaint("--run", run, "--compare", run, "--table", table)
    assert "would be one in the table" in complaint("--run", run, "--compare", run)
    assert not (tmp_path / "page.html").exists()


# ---------------------------------------------------------------------------------------------- privacy verdict


def scores(**attacks):
    """Rows of one seed: (method, metric, group) -> value."""
    values = {
        ("real_half", "attack_auc", ALL): 1.0, ("real_half", "calibrated_auc", ALL): 1.0,
        ("all_zeros", "calibrated_auc", ALL): 0.51, ("real_half", "copies", ALL): 1.0, ("poisson", "copies", ALL): 0.02,
        ("mine", "attack_auc", ALL): attacks.get("attack", 0.5), ("mine", "copies", ALL): attacks.get("copies", 0.0),
        ("mine", "calibrated_auc", ALL): attacks.get("calibrated", 0.5),
        ("all_zeros", "attack_auc", ALL): attacks.get("blind", 0.5),
        ("mine", "attack_auc", SEEDS): 0.9, ("mine", "calibrated_auc", SEEDS): 0.9,
    }  # fmt: skip
    rows = [("toy", "halves", 0, method, group, m, 100, value) for (method, m, group), value in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("attacks, kind", [
    ({}, "none"),
    ({"attack": 0.57}, "none"),  # 100 against 100 cells: chance
    ({"attack": 0.60}, "leak"),
    ({"calibrated": 0.60}, "leak"),
    ({"attack": 0.60, "blind": 0.61}, "none"),  # the split's luck: so much is found where nothing is known
    ({"attack": 0.30}, "none"),
    ({"attack": 0.60, "copies": 0.1}, "copies"),
    ({"copies": 0.02}, "none"),  # as many as coincidence makes
])  # fmt: skip
def test_verdict(attacks, kind):
    verdict = judge_privacy(scores(**attacks), "mine", {0: (100, 100)})
    assert verdict.kind == kind
    said = " ".join([verdict.headline, *verdict.reasons])
    assert "1.00 with real_half" in said and "On the seed cells alone it reaches 0.90" in said


def test_verdict_by_numbers():
    verdict = judge_privacy(scores(attack=0.75), "mine", {0: (100, 100)})
    said = " ".join(verdict.reasons)
    assert "AUROC of 0.75, where 0.5 is a guess and up to 0.58 may be chance (seed 0" in said
    assert "A copy of the training cells gets 1.00: this is 50% of the way there." in said
    assert judge_privacy(scores().assign(value=np.nan), "mine", {0: (100, 100)}).kind == "unknown"


def test_a_few_drawn_cells_are_no_clearance(toy_runs):
    run = load_run(toy_runs / "seed0")
    assert describe_shortage(run) == ""
    few = describe_shortage(replace(run, synthetic=run.synthetic[run.synthetic.obs["cell_type"] == "NK"]))
    assert few == "only 4 cells of 1 of 3 types were drawn of a model of 36"
    verdict = judge_privacy(scores(), "mine", {0: (100, 100)}, too_few=few)
    assert verdict.kind == "unknown" and few in verdict.headline
    assert judge_privacy(scores(attack=0.75), "mine", {0: (100, 100)}, too_few=few).kind == "leak"


def test_leaks_are_not_found_where_there_are_none():
    """Training and held-out cells of one distribution: few of many splits exceed the limit."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(150):
        attack, calibrated = (roc_auc_score(np.repeat([0, 1], 60), rng.normal(size=120)) for _ in range(2))
        rows = scores(attack=attack, calibrated=calibrated, blind=0.0)
        rows.loc[rows["method"] == "all_zeros", "value"] = 0.0
        found += judge_privacy(rows, "mine", {0: (60, 60)}).kind == "leak"
    assert 0 < found < 150 * 0.1


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def visit(browser):
    """Open a page; it must not say, ask for or complain about anything."""
    seen = []

    def visit(path, **settings):
        tab = browser.new_context(**settings).new_page()
        tab.on("console", lambda message: seen.append(message.text))
        tab.on("pageerror", lambda error: seen.append(str(error)))
        tab.on("dialog", lambda dialog: seen.append(dialog.message) or dialog.dismiss())
        tab.on("request", lambda request: seen.append(request.url) if request.url != path.as_uri() else None)
        tab.goto(path.as_uri())
        tab.wait_for_selector(".js-plotly-plot .main-svg")
        return tab

    yield visit
    assert not seen


def in_chromium(test):
    """Mark a test that takes a browser."""
    return pytest.mark.slow(pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")(test))


def drawn_points(tab):
    return tab.locator("#run-1-map .scatterlayer .point").count()


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_no_barriers(visit, made, scheme, width):
    tab = visit(made, color_scheme=scheme, viewport={"width": width, "height": 800})
    tab.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = Axe().run(tab).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@in_chromium
def test_names_are_no_code_in_a_browser(visit, unjudged, tmp_path):
    report.main(["--run", str(unjudged), "--out", str(tmp_path / "page.html")])
    tab = visit(tmp_path / "page.html")
    assert tab.get_by_label(HOSTILE).is_visible()
    assert HOSTILE[:22] in tab.locator("#run-1-attention .ytick").first.text_content()


@in_chromium
def test_cells_are_filtered_by_type_and_kind_from_the_keyboard(visit, made, toy_runs):
    run = load_run(toy_runs / "seed0")
    tab = visit(made)
    everyone = run.train.n_obs + run.held.n_obs + run.synthetic.n_obs
    status = tab.get_by_role("status")
    assert drawn_points(tab) == everyone and f"{everyone} cells shown, of 3 of 3 types" in status.text_content()
    tab.get_by_role("checkbox", name="T", exact=True).focus()
    tab.keyboard.press("Space")
    left = everyone - sum((cells.obs["cell_type"] == "T").sum() for cells in (run.train, run.held, run.synthetic))
    assert drawn_points(tab) == left and f"{left} cells shown, of 2 of 3 types" in status.text_content()
    tab.get_by_role("button", name="All").focus()
    tab.keyboard.press("Enter")
    tab.get_by_role("checkbox", name="synthetic cells").focus()
    tab.keyboard.press("Space")
    assert drawn_points(tab) == run.train.n_obs + run.held.n_obs
    tab.get_by_role("button", name="None").focus()
    tab.keyboard.press("Enter")
    assert drawn_points(tab) == 0


@in_chromium
def test_colour_by_kind(visit, made):
    tab = visit(made)
    fills = "[...new Set(document.getElementById('run-1-map').data.map((trace) => trace.marker.color))].sort()"
    by_type = tab.evaluate(fills)
    tab.get_by_role("radio", name="by kind").check()
    assert tab.evaluate(fills) == sorted(COLORS[kind] for kind in (SEEDS, OTHERS, HELD, SYNTHETIC)) != by_type


@in_chromium
def test_a_cell_under_the_pointer_is_named(visit, made):
    tab = visit(made)
    tab.locator("#run-1-map").scroll_into_view_if_needed()
    tab.locator("#run-1-map .scatterlayer .point").last.hover(force=True)
    assert re.search(r"cell.*c\d|synthetic_\d", tab.locator("#run-1-map .hovertext").first.text_content())


@in_chromium
def test_keyboard_reaches_the_content_first(visit, made):
    tab = visit(made)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
