"""Coming from laplace-torch: its names, and ours beside them."""

NOTES = """
Its posterior is fitted to a model, ours is a record made of a matrix F, a mean over examples, and how many they are.  F is a
PMat, posterior what `fisher.recipes.laplace` returns, layers a LayerCollection, recipes is fisher.recipes.
"""

ROWS = """
Laplace(model, likelihood)                  | recipes.laplace(f, params, F, n_examples, prior_precision)
fit(train_loader)                           | fim(f, params, data, representation, likelihood), then recipes.laplace
hessian_structure="full", "kron", "diag"    | PMatDense, PMatKFAC or PMatEKFAC, PMatDiag
hessian_structure="lowrank", "gp"           | PMatLowRank; recipes.functional_laplace(f, params, data)
FullLaplace, KronLaplace, DiagLaplace       | PMatDense, PMatKFAC, PMatDiag
FullLLLaplace, KronLLLaplace, DiagLLLaplace | layers.select(names), then fim(layers=), as PMatDense, PMatKFAC, PMatDiag
LowRankLaplace, FunctionalLaplace           | PMatLowRank, recipes.functional_laplace(f, params, data)
subset_of_weights="all"                     | fim(f, params, data): layers that are not named are all
subset_of_weights="last_layer", LLLaplace   | layers.select(names), then fim(layers=)
SubnetLaplace, FullSubnetLaplace            | layers.select(names), layers.remove, then fim(layers=)
ModuleNameSubnetMask, LastLayerSubnetMask   | layers.select(names), layers.remove, then fim(layers=)
ParamNameSubnetMask, RandomSubnetMask       | layers.select(names); of entries: fim of a function of the chosen ones alone
LargestVarianceDiagLaplaceSubnetMask        | F.get_diag() chooses; then fim of a function of the chosen entries alone
LargestMagnitudeSubnetMask                  | fim of a function of the chosen entries alone
likelihood="classification"                 | Categorical(class_axis=)
likelihood="regression", sigma_noise        | Gaussian(variance=), the square of that noise
likelihood="reward_modeling"                | "bernoulli" of differences; posterior.on_function(f), posterior.predict(layers=)
backend=CurvlinopsGGN, BackPackGGN, AsdlGGN | fim(estimator=) "exact"; "mc" is a sampled one
backend=CurvlinopsEF, BackPackEF, AsdlEF    | fim(estimator=) "empirical"
backend=CurvlinopsHessian, AsdlHessian      | hessian(loss, params, data, representation)
prior_precision, prior_structure            | recipes.laplace(prior_precision=), a number, {layer: number}, or a tree like params
prior_mean, temperature                     | recipes.laplace(prior_mean=, temperature=)
log_likelihood                              | posterior.log_likelihood(data), whatever the temperature
log_marginal_likelihood                     | posterior.log_marginal_likelihood(log_likelihood, prior_precision=)
optimize_prior_precision, method="marglik"  | recipes.tune_prior_precision(posterior, by=), recipes.tune_noise(posterior, data)
method="gridsearch", val_loader             | recipes.laplace(f, params, F, n_examples, prior_precision) under vmap over the grid
marglik_training                            | grad of posterior.log_marginal_likelihood(log_likelihood, prior_precision)
predictive with pred_type="glm"             | posterior.predict(x), posterior.probabilities(x)
link_approx="probit", "bridge", "mc"        | posterior.probabilities(link=)
functional_variance, functional_covariance  | posterior.predict(joint=)
functional_samples                          | posterior.predict(x, joint=), then normal numbers of that covariance
predictive_samples with pred_type="nn"      | posterior.sample(generator), then f at each
sample, posterior_scale                     | posterior.sample(generator)
posterior_precision                         | posterior.weight times the sum of posterior.F and posterior.regul
posterior_covariance                        | F.inverse(regul) over posterior.weight, with regul = posterior.regul
log_det_posterior_precision                 | F.logdet(regul) and d times the log of posterior.weight
log_prob, square_norm                       | posterior.log_prob(params); -2 times its difference from that at the mode
enable_backprop                             | posterior.predict(x): differentiable in x, params and prior, always
state_dict, load_state_dict                 | torch.save(posterior, file)
"""
