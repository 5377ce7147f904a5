"""The guide resolves: each name on our side, each argument and option it mentions."""

import re

import pytest
import torch

import fisher
import linmaps
from linmaps import trees
from tests import migration

ROOTS = {
    "F": fisher.PMat,
    "J": fisher.PFMapDense,
    "K": fisher.FMatDense,
    "layers": fisher.LayerCollection,
    "linmaps": linmaps,
    "torch": torch,
    "trees": trees,
}
THEIRS = """
    FIM classif_logits classif_binary_logits regression segmentation_logits classif_logsoftmax FIM_MonteCarlo trials
    covariance centering verbose Hessian Jacobian GramMatrix
    LayerCollection from_model ignore_unsupported_layers add_layer add_layer_from_model LinearLayer Conv2dLayer Parameter
    Affine1d Cosine1d WeightNorm1d WeightNorm2d numel p_pos named_parameters get_layerid_module_map get_common_layers merge
    PMatDense PMatBlockDiag PMatDiag PMatQuasiDiag PMatKFAC PMatEKFAC PMatEKFACBlockDiag PMatLowRank PMatImplicit PMatEye
    PMatMixed from_mapping map_layers_to mv vTMv mmap mapTMmap solve solvePVec solvePFMap svd eigendecomposition lstsq cg
    x0 rtol max_iter use_pi inv inverse pinv pow trace get_diag norm frobenius_norm to_torch get_block_torch get_KFE
    split_weight_bias get_eigendecomposition project_to_diag project_from_diag update_diag mm size get_device pickle
    PVector clone detach from_model_grad grad copy_to_model add_to_model dot to_dict to_torch_layer random_pvector
    random_pvector_dict display_correl FVector random_fvector PFMapDense jvp vjp iter_by_layer from_dict random_pfmap
    PFMapImplicit FMatDense
"""


ROWS = fisher.interop.coming_from("nngeometry").rows


def test_every_public_name_of_theirs_has_a_row():
    assert len(ROWS) > 50
    assert not migration.without_row(THEIRS.split(), ROWS)


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[r[0] for r in ROWS])
def test_row_resolves(theirs, ours):
    code = re.sub(r'"\w+"', "", ours)
    outside = re.sub(r"\([^()]*\)|\[[^\]]*\]", " ", code)
    known = {*ROOTS, *fisher.__all__}
    names = {n.rstrip(".") for n in re.findall(r"[A-Za-z_][\w.]*", outside)}
    names = {n for n in names if n.split(".")[0] in known or "_" in n or "." in n}
    assert names, "a row names something of ours"
    for name in names:
        assert migration.found(name, fisher, ROOTS) is not None
    own = lambda name: name not in ("f", "trees.map", "torch.save") and not name.startswith("torch.func.")
    calls = [c for c in re.findall(r"([\w.]+)\(([^()]*)\)", code) if own(c[0])]
    migration.check_calls(calls, fisher, ROOTS, set())
