"""The guides resolve: each name on our side, each argument and option it mentions."""

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
    "posterior": fisher.recipes.Laplace,
    "torch": torch,
    "trees": trees,
}
THEIRS = {
    "nngeometry": """
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
    """,
    "laplace-torch": """
        Laplace fit hessian_structure subset_of_weights likelihood FullLaplace KronLaplace DiagLaplace LowRankLaplace
        FunctionalLaplace LLLaplace SubnetLaplace ModuleNameSubnetMask backend CurvlinopsGGN CurvlinopsEF CurvlinopsHessian
        BackPackGGN BackPackEF AsdlGGN AsdlEF AsdlHessian sigma_noise prior_precision log_marginal_likelihood
        optimize_prior_precision pred_type functional_variance functional_covariance predictive_samples sample
        posterior_scale posterior_precision posterior_covariance log_det_posterior_precision square_norm log_prob
        state_dict load_state_dict
    """,
    "kronfluence": """
        prepare_model Task compute_train_loss compute_measurement get_influence_tracked_modules get_attention_mask Analyzer
        fit_all_factors fit_covariance_matrices perform_eigendecomposition fit_lambda_matrices strategy
        use_empirical_fisher has_shared_parameters covariance_max_examples covariance_module_partitions
        covariance_data_partitions activation_covariance_dtype lambda_dtype amp_dtype compute_pairwise_scores
        compute_self_scores use_measurement_for_self_influence damping_factor compute_per_module_scores
        compute_per_token_scores aggregate_query_gradients aggregate_train_gradients query_gradient_low_rank
        use_full_svd query_gradient_accumulation_steps data_partitions module_partitions per_device_train_batch_size
    """,
    "kfac-jax": """
        register_softmax_cross_entropy_loss register_squared_error_loss register_sigmoid_cross_entropy_loss
        register_normal_predictive_distribution NormalMeanVarianceNegativeLogProbLoss register_dense register_conv2d
        register_scale_and_shift register_generic register_only_generic auto_register_tags ProcessedJaxpr
        patterns_to_skip layer_tag_to_block_ctor layer_tags_vjp LayerVjpData BlockDiagonalCurvature
        ExplicitExactCurvature ImplicitExactCurvature multiply_fisher multiply_ggn multiply_hessian multiply_inverse
        multiply_matpower block_eigenvalues to_dense_matrix to_diagonal_block_dense DenseTwoKroneckerFactored
        DenseDiagonal DenseFull NaiveDiagonal ScaleAndShiftDiagonal ScaleAndShiftFull ScaledIdentity fisher_gradients
        fisher_exact ggn_exact fisher_empirical num_estimator_samples curvature_ema use_exact_inverses
        use_adaptive_damping damping_schedule damping_lower_threshold min_damping use_adaptive_learning_rate momentum
        l2_reg patches_moments
    """,
    "curvlinops": """
        HessianLinearOperator GGNLinearOperator FisherMCLinearOperator EFLinearOperator KFACLinearOperator
        EKFACLinearOperator FisherType TYPE2 MC EMPIRICAL KFACType EXPAND REDUCE JacobianLinearOperator
        TransposedJacobianLinearOperator CGInverseLinearOperator LSMRInverseLinearOperator
        NeumannInverseLinearOperator KFACInverseLinearOperator use_heuristic_damping use_exact_damping
        SubmatrixLinearOperator lanczos_approximate_spectrum LanczosApproximateSpectrumCached hutchinson_trace
        hutchpp_trace xtrace hutchinson_diag xdiag hutchinson_squared_fro to_scipy
    """,
    "backpack": """
        extend BatchGrad BatchL2Grad SumGradSquared Variance DiagGGNExact BatchDiagGGNExact DiagGGNMC BatchDiagGGNMC
        DiagHessian BatchDiagHessian SqrtGGNExact SqrtGGNMC KFAC KFLR KFRA HBP GGNMP HMP PCHMP hessianfree disable
    """,
}
ROWS = {library: fisher.interop.coming_from(library).rows for library in THEIRS}
EVERY = [(library, theirs, ours) for library, rows in ROWS.items() for theirs, ours in rows]


@pytest.mark.parametrize("library", THEIRS)
def test_every_public_name_of_theirs_has_a_row(library):
    assert len(ROWS[library]) > (50 if library == "nngeometry" else 15)
    assert not migration.without_row(THEIRS[library].split(), ROWS[library])


@pytest.mark.parametrize(("library", "theirs", "ours"), EVERY, ids=[f"{r[0]}: {r[1]}" for r in EVERY])
def test_row_resolves(library, theirs, ours):
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
