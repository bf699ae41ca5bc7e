"""A finished run is read back with the cells it saw and those it did not; whatever is wrong with it is said."""

import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from common.runs import identify, load_run
from data_generation import garage


def test_the_three_groups_of_cells(toy_runs, toy):
    run = load_run(toy_runs / "seed1")
    assert (run.dataset, run.method, run.seed, run.split) == ("toy", "garage", 1, f"holdout 0.5, {toy.n_vars} genes")
    assert identify(toy_runs / "seed1") == (run.dataset, run.split, run.seed, run.method)
    held = pd.read_csv(toy_runs / "seed1" / "heldout.csv")["cell"]
    assert sorted(run.held.obs_names) == sorted(held)
    assert sorted([*run.train.obs_names, *held]) == sorted(toy.obs_names)
    assert run.seeds is not None and sorted(run.seeds["cell"]) == sorted(run.train.obs_names)
    assert list(run.train.var_names) == list(run.held.var_names) == list(run.synthetic.var_names)
    assert (toy[run.held.obs_names].X != run.held.X).nnz == 0


def test_cells_drawn_later_are_judged_by_the_same_held_out_cells(toy_runs, tmp_path):
    garage.main(["--from", str(toy_runs / "seed1"), "--out", str(tmp_path / "more"), "--n-cells", "7"])
    later, run = load_run(tmp_path / "more"), load_run(toy_runs / "seed1")
    assert later.synthetic.n_obs == 7
    assert list(later.held.obs_names) == list(run.held.obs_names)
    assert later.seeds is not None and later.seeds.equals(run.seeds)
    assert later.method == "garage drawn by seed 42"  # so that both can stand in a table


def test_cells_drawn_from_a_run_that_was_made_again_are_not_judged(toy_runs, tmp_path):
    """What its successor held out, they may have been learnt from."""
    run = shutil.copytree(toy_runs / "seed1", tmp_path / "run")
    garage.main(["--from", str(run), "--out", str(tmp_path / "more"), "--n-cells", "7"])
    shutil.copy(toy_runs / "seed0" / "model.pt", run)
    assert "was made again since" in complaint(tmp_path / "more")


@pytest.fixture
def broken(toy_runs, tmp_path):
    return shutil.copytree(toy_runs / "seed0", tmp_path / "run")


def forget_checksums(folder):
    """Make a run as they were before run.json held checksums."""
    record = json.loads((folder / "run.json").read_text())
    assert set(record.pop("files")) == {"cells.h5ad", "heldout.csv", "seeds.csv"} and record.pop("checksum")
    (folder / "run.json").write_text(json.dumps(record))


def complaint(folder) -> str:
    with pytest.raises(UserError) as error:
        load_run(folder)
    return str(error.value)


def test_an_unfinished_run(broken):
    (broken / "run.json").unlink()
    assert "make it with python data_generation/garage.py --holdout 0.5" in complaint(broken)


def test_a_run_that_held_nothing_out(broken):
    (broken / "heldout.csv").unlink()
    assert "heldout.csv does not exist" in complaint(broken)
    forget_checksums(broken)
    assert "repeat it with --holdout 0.5" in complaint(broken)


def test_real_cells_that_have_changed(broken, toy, tmp_path):
    record = json.loads((broken / "run.json").read_text())
    toy.X[0, 0] += 1
    toy.write_h5ad(tmp_path / "toy.h5ad")
    record["source"]["input"] = str(tmp_path / "toy.h5ad")
    (broken / "run.json").write_text(json.dumps(record))
    assert "remove the line 'checksum' if the change is yours" in complaint(broken)
    del record["checksum"]
    (broken / "run.json").write_text(json.dumps(record))
    assert "have changed since the run" in complaint(broken)


def test_genes_that_are_gone(broken):
    cells = anndata.read_h5ad(broken / "cells.h5ad")
    cells.var_names = ["other", *cells.var_names[1:]]
    cells.write_h5ad(broken / "cells.h5ad")
    assert "cells.h5ad is damaged, or was changed" in complaint(broken)
    forget_checksums(broken)
    assert "no gene 'other' any more" in complaint(broken)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cells_that_are_no_numbers(broken, value):
    cells = anndata.read_h5ad(broken / "cells.h5ad")
    cells.X.data[0] = value
    cells.write_h5ad(broken / "cells.h5ad")
    forget_checksums(broken)
    assert "missing or infinite" in complaint(broken)
