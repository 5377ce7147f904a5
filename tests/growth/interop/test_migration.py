"""The guide resolves: each name on our side, each argument it mentions, every member of theirs."""

import re

import pytest
import torch

import growth
from linmaps import trees
from tests import migration

ROOTS = {"growth": growth, "trees": trees, "torch": torch}
PLAIN = {"params", "grown", "file"}  # what stands for a value
THEIRS = """
    LinearGrowingModule post_layer_function extended_post_layer_function layer weight bias in_neurons out_features
    input_volume number_of_parameters parameters get_fan_in_from_layer weights_statistics store_input store_pre_activity
    tensor_s tensor_m tensor_m_prev cross_covariance covariance_loss_gradient tensor_s_growth tensor_n compute_n_update
    projected_v_goal init_computation update_computation reset_computation update_computation_true_fisher
    compute_optimal_delta compute_optimal_updates delta_raw optimal_delta_layer extended_input_layer
    extended_output_layer eigenvalues_extension parameter_update_decrease activation_gradient
    new_neurons_fo_improvement first_order_improvement scaling_factor optimal_delta_scaling extended_forward apply_change
    parameter_step sub_select_optimal_added_parameters delete_update scale_parameter_update scale_layer
    scale_layer_extension normalize_optimal_updates layer_of_tensor add_parameters layer_in_extension
    create_layer_extensions allocate_layer_extensions KNOWN_EXTENSION_INITS copy_initialization_variance apply_rescaling
    apply_neuron_pairing target_in_neurons missing_neurons number_of_neurons_to_add complete_growth
    LinearMergeGrowingModule previous_tensor_s ConstantModule GrowingDropout GrowingBatchNorm LayerNorm GroupNorm
    TensorStatistic GrowingContainer select_best_update SequentialGrowingModel set_growing_layers GrowingMLP Perceptron
    line_search compute_statistics gradient_descent evaluate_model sqrt_inverse
""".split()  # noqa: SIM905


ROWS = growth.interop.coming_from("gromo").rows


def test_every_public_name_of_theirs_has_a_row():
    assert len(ROWS) > 50
    assert not migration.without_row(THEIRS, ROWS)


SYMBOLS = {"M_prev", "t_delta", "t_neurons"}  # of formulas


def is_name(word):
    """Whether a word of a row is a name, not prose: dotted, with an underscore, a capital letter, or one of ours."""
    return bool(re.search(r"[._]|^[A-Z]\w", word)) or word in growth.__all__


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[r[0] for r in ROWS])
def test_row_resolves(theirs, ours):
    """Every name, before and after the colon, and every call with all that it requires."""
    code = re.sub(r'"\w+"', "", ours)
    outside = re.sub(r"(?<=\w)\([^()]*\)", " ", code)
    names = [n for n in (w.strip(".") for w in re.findall(r"[A-Za-z_][\w.]*", outside)) if is_name(n)]
    assert names, "a row names something of ours"
    for name in set(names) - SYMBOLS:
        assert migration.found(name, growth, ROOTS) is not None
    migration.check_calls(re.findall(r"([\w.]+)\(([^()]*)\)", code), growth, ROOTS, PLAIN)


@pytest.mark.parametrize(
    "row",
    [
        "Growth",
        "layers_of(params, pair)",
        "a table: Growth.steps",
        "candidates(gstats, k)",
        "grow(params, new, pair)",
        "grow(by=)",
    ],
)
def test_a_wrong_row_is_found(row):
    with pytest.raises((AttributeError, TypeError, AssertionError)):
        test_row_resolves("theirs", row)
