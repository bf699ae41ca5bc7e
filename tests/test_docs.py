"""What the documentation says can be done: commands, flags, links, names, and the steps for those who add to it."""

import ast
import re
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from xml.etree import ElementTree

import anndata
import pytest

import common.data
import config
from benchmarking.baseline import METHODS
from benchmarking.training import LogValues
from common.metrics.catalogue import METRICS
from config import BASELINES, DATASETS, Params
from data_generation import garage

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python ([\w/]+\.py|-m [\w.]+)((?:\\\n|[^\n`;|#])*)")
TOOLS = {"-m venv", "-m pytest"}
OF_OTHERS = {"--extra-index-url", "--no-", "--help"}  # pip's, a prefix, and everyone's


def load(name: str, path: Path):
    """Import a file that belongs to no package."""
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


generate = load("generate", ROOT / "docs" / "generate.py")
help_of = cache(generate.help_of)


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def commands_in(page: Path) -> list[tuple[str, str]]:
    """Return scripts, modules as paths, and what stands behind them."""
    return [
        (f"{name[3:].replace('.', '/')}.py" if name.startswith("-m ") else name, rest.replace("\\\n", " "))
        for name, rest in COMMAND.findall(page.read_text())
        if name not in TOOLS
    ]


def test_commands_are_found():
    """The regular expression is no good if it finds none."""
    found = {script for page in PAGES for script, _ in commands_in(page)}
    assert found >= {"data_generation/garage.py", "analysis/evaluate.py", "benchmarking/run_benchmark.py"}
    assert ("data_generation/garage.py", " --holdout 0.5 --seed $seed") in commands_in(ROOT / "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_a_script_and_has_these_flags(page):
    for script, rest in commands_in(page):
        if f":caption: {script}" in page.read_text():  # the page makes it; run by a test of its own
            continue
        assert (ROOT / script).is_file(), script
        if flags := flags_in(rest):
            preset = " ".join(re.findall(r"--preset \w+", rest)).split()
            known = flags_in(help_of(script, *preset))
            assert flags <= known, f"python {script} has no {flags - known}"


def test_every_flag_named_anywhere_is_of_some_script():
    known = {flag for script in generate.scripts() for flag in flags_in(help_of(script))}
    known |= flags_in(help_of("data_generation/garage.py", "--preset", "paper")) | OF_OTHERS
    for page in PAGES:
        named = {flag for code in re.findall(r"`([^`\n]+)`", page.read_text()) for flag in flags_in(code)}
        assert named <= known, f"{page.name}: {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)]*)?\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_code_exists(page):
    for name in re.findall(r"\{py:\w+\}`~?([\w.]+)`", page.read_text()):
        module, rest = name, []
        while not (ROOT / f"{module.replace('.', '/')}.py").exists():
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
        found = import_module(module)
        for part in rest:
            found = getattr(found, part)


def test_configuration_has_every_field_with_its_words():
    page = generate.configuration()
    kinds = [kind for kind in vars(config).values() if is_dataclass(kind) and isinstance(kind, type)]
    assert len([kind for kind in kinds if issubclass(kind, Params)]) > 10
    for kind in kinds:
        docs = generate.field_docs(kind)
        assert list(docs) == [field.name for field in fields(kind)]
        for name, doc in docs.items():
            assert f"`--{name.replace('_', '-')}`" in page or f"`{name}`" in page, f"{kind.__name__}.{name}"
            assert doc in page


def test_configuration_tells_defaults_and_ranges():
    rows = {line.split(" | ")[0]: line.strip("| ").split(" | ")[2:] for line in generate.configuration().splitlines()}
    assert rows["| `--leakage`"] == ["0.2", "0.2", "a number from 0 to 1"]
    assert rows["| `--gat-epochs`"] == ["500", "7501", "a whole number of at least 0"]
    assert rows["| `--rare-threshold`"] == ["none", "none", "a whole number of at least 0"]
    assert rows["| `--graph-on`"] == ["pcs", "genes", "`pcs`, `genes`"]
    assert rows["| `--iterations`"] == ["20001", "a whole number of at least 0"]
    assert rows["| `--budget-in`"][:2] == ["steps", "epochs"]


def test_metrics_are_those_of_the_catalogue():
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert sorted(re.findall(r"\{\{ (\w+) \}\}", page)) == sorted(METRICS)
    lines = generate.metrics()
    for name, metric in METRICS.items():
        for part in (metric.label, metric.source, metric.meaning, f"`{name}`"):
            assert part in lines[name]
    assert "Lower is better, ideally 0.5; from 0 to 1." in lines["rf_auroc_genes"]
    assert "no ideal; from 0 to infinity." in lines["record_distance"]


def test_pages_show_what_scripts_say():
    page = generate.commands()
    for script in generate.scripts():
        assert f"## {script}\n" in page
    assert str(ROOT) not in page
    assert "## benchmarking/sota/gan.py" in page and "_tf1" not in re.sub(r"docs/.*", "", page)
    assert all(f"`{name}`" in generate.datasets() for name in DATASETS)


def test_overview_is_as_drawn(tmp_path):
    overview = load("overview", ROOT / "img" / "overview.py")
    overview.main(["--out", str(tmp_path / "overview.svg")])
    drawn = (tmp_path / "overview.svg").read_text()
    assert drawn == (ROOT / "img" / "overview.svg").read_text(), "draw it anew: python img/overview.py"
    root = ElementTree.fromstring(drawn)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{svg}title").text and "calibration" in root.find(f"{svg}desc").text.lower()
    assert root.attrib["aria-labelledby"].split() == [
        root.find(f"{svg}{part}").attrib["id"] for part in ("title", "desc")
    ]


def test_quickstart_in_python(tiny, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    monkeypatch.setattr(config, "GarageParams", lambda: tiny)
    found = {}
    exec(code, found)
    assert found["synthetic"].n_obs == 1000
    assert set(found["rare"].obs["cell_type"]) == {"CD34+"} and found["rare"].n_obs == 50


@pytest.fixture
def steps() -> dict[str, str]:
    """The code blocks of extending.md by their captions."""
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(
        r"^ *```\{code-block\} python\n *:caption: (\S+)\n\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE
    )
    assert len(dict(blocks)) == len(blocks) == 6
    return {caption: dedent(code) for caption, code in blocks}


def test_a_baseline_added_by_the_steps(steps, toy, tmp_path, monkeypatch):
    names = {**vars(config)}
    exec(steps["config.py"], names)
    monkeypatch.setattr(config, "PpcaParams", names["PpcaParams"], raising=False)
    for table, code in ((BASELINES, steps["BASELINES"]), (METHODS, steps["METHODS"])):
        for name, row in eval(f"{{{code}}}", names).items():
            monkeypatch.setitem(table, name, row)
    (tmp_path / "ppca.py").write_text(steps["benchmarking/sota/ppca.py"])
    monkeypatch.delitem(sys.modules, METHODS["ppca"], raising=False)
    ppca = load(METHODS["ppca"], tmp_path / "ppca.py")
    monkeypatch.setitem(sys.modules, METHODS["ppca"], ppca)

    toy.write_h5ad(tmp_path / "toy.h5ad")
    run = tmp_path / "run"
    ppca.main(["--input", str(tmp_path / "toy.h5ad"), "--latent-dim", "3", "--out", str(run), "--device", "cpu"])
    ppca.main(["--from", str(run), "--cell-type", "T", "--n-cells", "9", "--device", "cpu"])
    drawn = anndata.read_h5ad(run / "cells.h5ad")
    assert set(drawn.obs["cell_type"]) == set(toy.obs["cell_type"]) and drawn.n_obs == toy.n_obs
    again = anndata.read_h5ad(run / "drawn_seed42" / "cells.h5ad")
    assert list(again.obs["cell_type"]) == ["T"] * 9
    drawn = ppca.fit(toy, names["PpcaParams"](latent_dim=3, validation=0.0), seed=0).sampler.draw(20000).numpy()
    real = LogValues.of(toy).X
    assert drawn.mean(0) == pytest.approx(real.mean(0), abs=0.05)
    assert drawn.var(0).sum() == pytest.approx(real.var(0).sum(), rel=0.05)  # the closed form keeps it


def test_a_control_added_by_the_steps(steps, toy, tmp_path):
    (tmp_path / "mean_cell.py").write_text(steps["benchmarking/controls/mean_cell.py"])
    control = load("mean_cell", tmp_path / "mean_cell.py")
    drawn = control.sample(control.fit(toy, seed=0), 5, cell_type="B", seed=0)
    of_type = toy[toy.obs["cell_type"] == "B"].X.toarray()
    assert drawn.X.toarray()[4] == pytest.approx(of_type.mean(0))


def test_a_data_set_added_by_the_steps(steps, toy, tmp_path, monkeypatch, tiny_preset):
    for name, row in eval(f"{{{steps['DATASETS']}}}", vars(config)).items():
        monkeypatch.setitem(DATASETS, name, row)
    monkeypatch.setattr(common.data, "DATA_DIR", tmp_path)
    for folder in ("expression_matrix", "cell_types"):
        (tmp_path / folder).mkdir()
    toy.to_df().to_csv(tmp_path / DATASETS["toy"].expression)
    toy.obs["cell_type"].to_csv(tmp_path / DATASETS["toy"].labels, index=False)
    garage.main(["--dataset", "toy", "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert "`toy`" in generate.datasets()
    assert anndata.read_h5ad(tmp_path / "run" / "cells.h5ad").shape == toy.shape


def test_scripts_are_documented_as_they_run():
    """A script's docstring has a command that names it, what it reads and what it writes."""
    for script in generate.scripts():
        doc = ast.get_docstring(ast.parse((ROOT / script).read_text()))
        assert f"Run:    python {script}" in doc, script
        assert "\nReads:  " in doc and "\nWrites: " in doc, script
