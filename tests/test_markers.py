"""Marker genes: the published lists are whole, planted ones are found, and nothing is left out in silence."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import TOY_GENES, TOY_SIZES
from sklearn.metrics import roc_auc_score

from biological_analysis.markers import PUBLISHED, MarkerSource, check_same_markers, choose_markers, find_markers
from common.errors import UserError
from common.metrics.fidelity import compare_on
from common.results import COLUMNS


def listed(tmp_path, content):
    path = tmp_path / "markers.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return MarkerSource(markers=path)


def test_published_lists_are_whole():
    genes = {dataset: [gene for of in lists.values() for gene in of] for dataset, lists in PUBLISHED.items()}
    assert {dataset: len(named) for dataset, named in genes.items()} == {"cbmc": 45, "muraro": 45}
    assert all(len(set(named)) == len(named) for named in genes.values())


def test_planted_genes_are_chosen(toy):
    """The i-th type raises every third gene from the i-th on; the last gene is silent."""
    found = choose_markers(toy, 5)
    for i, name in enumerate(TOY_SIZES):
        assert len(found[name]) == 5 and set(found[name]) <= {f"g{gene}" for gene in range(i, TOY_GENES - 1, 3)}


def test_genes_are_in_the_order_of_their_auroc(toy):
    found, X = choose_markers(toy, TOY_GENES), compare_on(toy)
    for name in TOY_SIZES:
        of_type = (toy.obs["cell_type"] == name).to_numpy()
        auroc = [roc_auc_score(of_type, X[:, toy.var_names.get_loc(gene)]) for gene in found[name]]
        assert auroc == sorted(auroc, reverse=True) and min(auroc) > 0.5  # upregulated ones only


def test_genes_are_chosen_among_those_given(toy):
    found, notes = find_markers(toy, MarkerSource(n_markers=2), choose_from=toy.var_names[:9])
    assert notes == [] and set(found) == set(TOY_SIZES)
    assert {gene for genes in found.values() for gene in genes} <= set(toy.var_names[:9])


def test_what_a_list_has_and_the_data_lack_is_told(toy, tmp_path):
    found, notes = find_markers(toy, listed(tmp_path, {"B": ["g0", "CD19", "g0"], "NK": ["NKG7"]}))
    assert found == {"B": ["g0"]}
    assert notes == ["toy lacks 2 of 3 marker genes: CD19, NKG7", "no marker genes for NK, T of toy"]


def test_published_list_of_other_types(toy):
    toy.uns["dataset"] = "cbmc"
    toy.var_names = ["NKG7", "CD19", *toy.var_names[2:]]
    found, notes = find_markers(toy, MarkerSource())
    assert found == {"NK": ["NKG7"], "B": ["CD19"]}
    assert "has no type Eryth, CD14+ Mono" in notes[0] and "lacks 9 of 11" in notes[1] and "for T of" in notes[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"NKK": ["g0"]}, "did you mean 'NK'"),
        ({"NK": ["CD3E"]}, "none of the marker genes"),
        ({"NK": "g0"}, "no list of markers"),
        (["g0"], "no list of markers"),
        ({"NK": [1]}, "no list of markers"),
        ("{", "no readable JSON file"),
    ],
)
def test_lists_that_are_no_use(toy, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        find_markers(toy, listed(tmp_path, content))


def test_flags_that_contradict(tmp_path):
    with pytest.raises(UserError, match="--n-markers is 0"):
        MarkerSource(n_markers=0)
    with pytest.raises(UserError, match="two sources"):
        MarkerSource(markers=tmp_path / "m.json", n_markers=3)
    with pytest.raises(UserError, match="does not exist"):
        MarkerSource(markers=tmp_path / "m.json").describe("toy")


def test_tables_do_not_mix_markers(tmp_path):
    path, old = tmp_path / "table.csv", listed(tmp_path, {"NK": ["g0"]})
    check_same_markers(path, {"toy"}, old)  # no table yet
    pd.DataFrame([["toy", "s", 0, "garage", "NK", "m", 1, 0.0]], columns=COLUMNS).assign(
        markers=old.describe("toy")
    ).to_csv(path, index=False)
    check_same_markers(path, {"toy"}, old)
    new = listed(tmp_path, {"NK": ["g1"]})  # another content under the same name
    check_same_markers(path, {"other"}, new)
    for source in (new, MarkerSource(), MarkerSource(n_markers=3)):
        with pytest.raises(UserError, match="made with other markers"):
            check_same_markers(path, {"toy"}, source)


def test_one_type_has_no_markers(toy):
    with pytest.raises(UserError, match="none of the marker genes"), np.errstate(all="ignore"):
        find_markers(toy[toy.obs["cell_type"] == "T"].copy(), MarkerSource())
