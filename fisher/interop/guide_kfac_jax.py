"""Coming from kfac-jax: its names, and ours beside them."""

NOTES = """
Both find the layers of a pure function, here by watching its calls, there in its jaxpr; losses are not registered, a likelihood
of the output is named.  F is a PMat, layers a LayerCollection, recipes is fisher.recipes, rules is fisher.rules.
"""

ROWS = """
register_softmax_cross_entropy_loss               | Categorical(class_axis=); its weight: data (x, target, weight)
register_categorical_predictive_distribution      | Categorical(class_axis=)
CategoricalLogitsNegativeLogProbLoss              | Categorical(class_axis=), of one-hot targets too: as probabilities
register_squared_error_loss                       | Gaussian(variance=) of 1 / 2: its squares have no half
register_sigmoid_cross_entropy_loss               | Bernoulli()
register_multi_bernoulli_predictive_distribution  | Bernoulli()
register_normal_predictive_distribution           | Gaussian(variance=), 1 / 2 where theirs is not given
NormalMeanVarianceNegativeLogProbLoss             | HeteroscedasticGaussian
register_dense, register_conv2d                   | layers.from_function(f, params, x): nothing to register
register_scale_and_shift                          | layers.from_function(f, params, x): nothing to register
register_generic, register_only_generic           | layers.from_function(exact=)
auto_register_tags, ProcessedJaxpr                | layers.from_function(f, params, x)
patterns_to_skip                                  | layers.from_function(exact=), layers.remove
set_default_tag_to_block_ctor                     | fim(layers_to=), PMatMixed; rules.register
layer_tag_to_block_ctor                           | fim(layers_to=), PMatMixed; rules.register
layer_tags_vjp, LayerVjpData                      | layer_io(f, params, x, layers, cotangent)
BlockDiagonalCurvature                            | fim(f, params, data, representation)
ExplicitExactCurvature                            | PMatDense
ImplicitExactCurvature                            | PMatImplicit
multiply_fisher, multiply_ggn                     | PMatImplicit, F.mv(v)
multiply_hessian                                  | hessian(loss, params, data, representation), then F.mv(v)
multiply_inverse                                  | F.solve(v, regul)
multiply_matpower                                 | F.pow(p, regul)
block_eigenvalues, eigenvalues                    | F.eigendecomposition(), F.get_eigenvalues()
loss_tags_vjp, loss_tags_jvp, loss_tags_hvp       | jacobian(f, params, x, representation), as PFMapImplicit; ggn
to_dense_matrix, to_diagonal_block_dense_matrix   | F.to_torch(), F.get_block(name)
DenseTwoKroneckerFactored                         | PMatKFAC
Conv2DTwoKroneckerFactored                        | PMatKFAC
Conv2DDiagonal, Conv2DFull                        | PMatDiag, PMatBlockDiag
RepeatedDenseKroneckerFactored                    | PMatKFAC: positions are seen; fim(sharing=)
DenseTNT, Conv2DTNT, NaiveTNT                     | PMatKFAC: factors without the tensor normal form
DenseDiagonal, NaiveDiagonal                      | PMatDiag
DenseFull, NaiveFull                              | PMatBlockDiag
ScaleAndShiftDiagonal, ScaleAndShiftFull          | PMatDiag, PMatBlockDiag
ScaledIdentity                                    | PMatEye
estimation_mode="fisher_gradients"                | fim(estimator=, n_samples=, generator=) "mc"
estimation_mode="fisher_exact", "ggn_exact"       | fim(estimator=) "exact"
estimation_mode="fisher_empirical"                | fim(estimator=) "empirical"
num_estimator_samples                             | fim(n_samples=)
curvature_ema                                     | ema(old, new, decay)
use_exact_inverses, pi-adjusted damping           | F.solve(kind=) "default", PMatKFAC.solve(kind=) "pi"
OptaxPreconditioner                               | recipes.kfac(rate=, momentum=), a pair of init and update; F.solve(v, regul)
precon_power                                      | F.pow(p, regul)
Optimizer, step                                   | recipes.kfac(f, likelihood), then init and update; gradients are yours
multi_device, pmap_axis_name                      | recipes.kfac(reduce=): distributed.all_reduce()
value_func_has_state, value_func_has_rng          | recipes.kfac(statistics=); f is a pure function
value_and_grad_func, value_func_has_aux           | torch.func.grad of your loss; recipes.kfac(loss=) for the ratio
inverse_update_period, curvature_update_period    | recipes.kfac(bases_every=, factors_every=)
use_adaptive_damping, damping_schedule            | recipes.kfac(adapt=, damping=), a number or a function of the step
initial_damping                                   | recipes.kfac(damping=)
damping_adaptation_interval                       | recipes.kfac(adapt_every=)
damping_adaptation_decay                          | recipes.kfac(factor=), which is one over it
damping_lower_threshold, damping_upper_threshold  | recipes.kfac(lower=, upper=)
min_damping                                       | recipes.kfac(minimum=)
use_step_rejection                                | recipes.natural_gradient_step(loss, params, F, gradient, damping)
use_adaptive_learning_rate, use_adaptive_momentum | recipes.kfac(rate=) None, recipes.best_step(F, gradient, directions, regul)
learning_rate_schedule, momentum_schedule         | recipes.kfac(rate=, momentum=), numbers or functions of the step
norm_constraint, l2_reg                           | recipes.kfac(norm_constraint=, l2=, weight_decay=, clip=)
num_burnin_steps                                  | recipes.kfac, init with a list of batches
batch_process_func, func_state, batch norm        | recipes.in_train_mode(f), then recipes.kfac(statistics=, forget=)
patches_moments                                   | PMatKFAC.factors
"""
