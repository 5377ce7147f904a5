"""The guides resolve: each name on our side, each argument and option it mentions."""

import re

import pytest
import torch

import fisher
import linmaps
from linmaps import trees
from tests import migration
from tests.laws import close

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
        state_dict load_state_dict FullLLLaplace KronLLLaplace DiagLLLaplace FullSubnetLaplace LastLayerSubnetMask
        ParamNameSubnetMask LargestMagnitudeSubnetMask RandomSubnetMask log_likelihood gridsearch marglik_training
        functional_samples enable_backprop
    """,
    "kronfluence": """
        prepare_model Task compute_train_loss compute_measurement get_influence_tracked_modules get_attention_mask Analyzer
        fit_all_factors fit_covariance_matrices perform_eigendecomposition fit_lambda_matrices strategy
        use_empirical_fisher has_shared_parameters covariance_max_examples covariance_module_partitions
        covariance_data_partitions activation_covariance_dtype lambda_dtype amp_dtype compute_pairwise_scores
        compute_self_scores use_measurement_for_self_influence damping_factor compute_per_module_scores
        compute_per_token_scores aggregate_query_gradients aggregate_train_gradients query_gradient_low_rank
        use_full_svd query_gradient_accumulation_steps data_partitions module_partitions per_device_train_batch_size
        post_process_per_sample_gradient get_module_summary FactorArguments ScoreArguments aggregate_covariance_matrices
        aggregate_lambda_matrices gradient_covariance_dtype lambda_max_examples lambda_module_partitions
        lambda_data_partitions amp_scale per_sample_gradient_dtype precondition_dtype score_dtype
        offload_activations_to_cpu load_all_factors load_covariance_matrices load_pairwise_scores load_self_scores
    """,
    "kfac-jax": """
        register_softmax_cross_entropy_loss register_squared_error_loss register_sigmoid_cross_entropy_loss
        register_normal_predictive_distribution NormalMeanVarianceNegativeLogProbLoss register_dense register_conv2d
        register_scale_and_shift register_generic register_only_generic auto_register_tags ProcessedJaxpr
        patterns_to_skip layer_tag_to_block_ctor layer_tags_vjp LayerVjpData BlockDiagonalCurvature
        ExplicitExactCurvature ImplicitExactCurvature multiply_fisher multiply_ggn multiply_hessian multiply_inverse
        multiply_matpower block_eigenvalues to_dense_matrix to_diagonal_block_dense_matrix DenseTwoKroneckerFactored
        DenseDiagonal DenseFull NaiveDiagonal ScaleAndShiftDiagonal ScaleAndShiftFull ScaledIdentity fisher_gradients
        fisher_exact ggn_exact fisher_empirical num_estimator_samples curvature_ema use_exact_inverses
        use_adaptive_damping damping_schedule damping_lower_threshold min_damping use_adaptive_learning_rate momentum
        l2_reg patches_moments register_categorical_predictive_distribution
        register_multi_bernoulli_predictive_distribution CategoricalLogitsNegativeLogProbLoss
        set_default_tag_to_block_ctor loss_tags_vjp loss_tags_jvp loss_tags_hvp Conv2DTwoKroneckerFactored Conv2DDiagonal
        Conv2DFull RepeatedDenseKroneckerFactored DenseTNT NaiveFull OptaxPreconditioner precon_power multi_device
        pmap_axis_name value_func_has_state value_func_has_rng inverse_update_period curvature_update_period
        initial_damping damping_adaptation_interval damping_adaptation_decay damping_upper_threshold use_step_rejection
        use_adaptive_momentum
    """,
    "curvlinops": """
        HessianLinearOperator GGNLinearOperator FisherMCLinearOperator EFLinearOperator KFACLinearOperator
        EKFACLinearOperator FisherType TYPE2 MC EMPIRICAL KFACType EXPAND REDUCE JacobianLinearOperator
        TransposedJacobianLinearOperator CGInverseLinearOperator LSMRInverseLinearOperator
        NeumannInverseLinearOperator KFACInverseLinearOperator use_heuristic_damping use_exact_damping
        SubmatrixLinearOperator lanczos_approximate_spectrum LanczosApproximateSpectrumCached hutchinson_trace
        hutchpp_trace xtrace hutchinson_diag xdiag hutchinson_squared_fro to_scipy MSELoss
        lanczos_approximate_log_spectrum LanczosApproximateLogSpectrumCached separate_weight_and_bias state_dict
        check_deterministic
    """,
    "backpack": """
        extend BatchGrad BatchL2Grad SumGradSquared Variance DiagGGNExact BatchDiagGGNExact DiagGGNMC BatchDiagGGNMC
        DiagHessian BatchDiagHessian SqrtGGNExact SqrtGGNMC KFAC KFLR KFRA HBP GGNMP HMP PCHMP hessianfree disable
        MSELoss CrossEntropyLoss hessian_vector_product ggn_vector_product SumModule Parallel
        convert_module_to_backpack BackpropExtension hook_store_io
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


# --- numbers: what a row says is theirs, by hand ---------------------------------------------------------------------------

X, T = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 2
P = {"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)}
F = lambda p, x: torch.tanh(x @ p["w"])
OPTIONS = {"n_samples": 2, "generator": torch.Generator(), "centered": True}


@pytest.mark.parametrize(
    ("options", "estimator"),
    sorted(
        {
            (calls[0], name)
            for _, _, ours in EVERY
            if (calls := re.findall(r"fim\((estimator=[^()]*)\)", ours))
            for name in re.findall(r'"(\w+)"', ours)
        }
    ),
)
def test_estimators_that_rows_name_take_the_options_beside_them(options, estimator):
    names = {o.strip(" =") for o in options.split(",")} - {"estimator", "noise"}
    given = {n: OPTIONS[n] for n in names | ({"generator"} if estimator == "mc" else set())}
    fisher.fim(F, P, (X, T), fisher.PMatDiag, estimator=estimator, **given)


def test_rows_of_a_posterior():
    """laplace-torch: precision N F / T + P, its inverse and its determinant, the quadratic form of log_prob."""
    matrix = fisher.fim(F, P, X, fisher.PMatDense, fisher.Gaussian(variance=0.3**2))
    posterior = fisher.recipes.laplace(F, P, matrix, 6, 2.0, temperature=0.7)
    eye = torch.eye(6, dtype=torch.float64)
    precision = 6 / 0.7 * matrix.to_torch() + 2 * eye
    regul, weight = posterior.regul, posterior.weight
    close(weight * (posterior.F.to_torch() + regul * eye), precision, 1e-12, "posterior_precision")
    close(matrix.inverse(regul).to_torch() / weight, precision.inverse(), 1e-12, "posterior_covariance")
    logdet = matrix.logdet(regul) + 6 * torch.as_tensor(weight).log()
    close(logdet, precision.logdet(), 1e-12, "log_det_posterior_precision")
    v = torch.linspace(-1, 1, 6, dtype=torch.float64)
    there = posterior.log_prob({"w": P["w"] + v.reshape(3, 2)}) - posterior.log_prob(P)
    close(-2 * there, v @ precision @ v, 1e-11, "square_norm")


def test_rows_of_squared_errors():
    """MSELoss of C outputs is a gaussian of variance C / 2, a sum of squares without a half one of 1 / 2."""
    y = torch.zeros(6, 2, dtype=torch.float64)
    for loss, variance in ((lambda y, t: ((y - t) ** 2).mean(1), 2 / 2), (lambda y, t: ((y - t) ** 2).sum(1), 1 / 2)):
        G = fisher.ggn(F, loss, P, (X, y)).to_torch()
        close(fisher.fim(F, P, X, fisher.PMatDense, fisher.Gaussian(variance=variance)).to_torch(), G, 1e-12, "ggn")


def test_the_row_of_a_variance():
    loss = lambda p, x, t: torch.nn.functional.cross_entropy(F(p, x), t, reduction="none")
    g = fisher.example_gradients(loss, P, (X, T)).to_torch()[:, 0]
    got = fisher.fim(F, P, (X, T), fisher.PMatDiag, estimator="gradient_covariance", centered=True)
    close(trees.ravel(got.get_diag())[0], g.var(0, correction=0), 1e-12, "Variance")
