"""Coming from kfac-jax: its names, and ours beside them."""

NOTES = """
Both find the layers of a pure function, here by watching its calls, there in its jaxpr; losses are not registered, a likelihood
of the output is named.  F is a PMat, layers a LayerCollection, recipes is fisher.recipes, rules is fisher.rules.
"""

ROWS = """
register_softmax_cross_entropy_loss         | Categorical(class_axis=)
register_squared_error_loss                 | Gaussian(variance=)
register_sigmoid_cross_entropy_loss         | Bernoulli()
register_normal_predictive_distribution     | Gaussian(variance=)
NormalMeanVarianceNegativeLogProbLoss       | HeteroscedasticGaussian
register_dense, register_conv2d             | layers.from_function(f, params, x): nothing to register
register_scale_and_shift                    | layers.from_function(f, params, x): nothing to register
register_generic, register_only_generic     | layers.from_function(exact=)
auto_register_tags, ProcessedJaxpr          | layers.from_function(f, params, x)
patterns_to_skip                            | layers.from_function(exact=), layers.remove
layer_tag_to_block_ctor                     | fim(layers_to=), PMatMixed; rules.register
layer_tags_vjp, LayerVjpData                | layer_io(f, params, x, layers, cotangent)
BlockDiagonalCurvature                      | fim(f, params, data, representation)
ExplicitExactCurvature                      | PMatDense
ImplicitExactCurvature                      | PMatImplicit
multiply_fisher, multiply_ggn               | PMatImplicit, F.mv(v)
multiply_hessian                            | hessian(loss, params, data, representation), then F.mv(v)
multiply_inverse                            | F.solve(v, regul)
multiply_matpower                           | F.pow(p, regul)
block_eigenvalues, eigenvalues              | F.eigendecomposition(), F.get_eigenvalues()
to_dense_matrix, to_diagonal_block_dense    | F.to_torch(), F.get_block(name)
DenseTwoKroneckerFactored, Conv2D           | PMatKFAC; convolutions are products of patches
DenseDiagonal, DenseFull, NaiveDiagonal     | PMatDiag, PMatBlockDiag
ScaleAndShiftDiagonal, ScaleAndShiftFull    | PMatDiag, PMatBlockDiag
ScaledIdentity                              | PMatEye
estimation_mode="fisher_gradients"          | fim(estimator=, n_samples=, generator=) "mc"
estimation_mode="fisher_exact", "ggn_exact" | fim(estimator=) "exact"
estimation_mode="fisher_empirical"          | fim(estimator=) "empirical"
num_estimator_samples                       | fim(n_samples=)
curvature_ema                               | ema(old, new, decay)
use_exact_inverses, pi-adjusted damping     | F.solve(kind=) "default", PMatKFAC.solve(kind=) "pi"
use_adaptive_damping, damping_schedule      | recipes.natural_gradient_step, recipes.Damping
damping_lower_threshold, min_damping        | recipes.natural_gradient_step(lower=, upper=, factor=, minimum=)
use_adaptive_learning_rate, momentum        | recipes.best_step(F, gradient, directions, regul)
l2_reg                                      | regul of F.solve(v, regul)
patches_moments                             | PMatKFAC.factors
"""
