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
LowRankLaplace, FunctionalLaplace           | PMatLowRank, recipes.functional_laplace(f, params, data)
subset_of_weights="all"                     | fim(f, params, data): layers that are not named are all
subset_of_weights="last_layer", LLLaplace   | layers.select(names), then fim(layers=)
SubnetLaplace, ModuleNameSubnetMask         | layers.select(names), layers.remove, then fim(layers=)
LargestVarianceDiagLaplaceSubnetMask        | F.get_diag() chooses; then fim of g(part, x) = f(params with part there, x)
likelihood="classification"                 | Categorical(class_axis=)
likelihood="regression", sigma_noise        | Gaussian(variance=)
likelihood="reward_modeling"                | "bernoulli" of differences of rewards, then posterior.on_function(reward)
backend=CurvlinopsGGN, BackPackGGN, AsdlGGN | fim(estimator=) "exact"; "mc" is a sampled one
backend=CurvlinopsEF, BackPackEF, AsdlEF    | fim(estimator=) "empirical"
backend=CurvlinopsHessian, AsdlHessian      | hessian(loss, params, data, representation)
prior_precision, prior_structure            | recipes.laplace(prior_precision=), a number, {layer: number}, or a tree like params
prior_mean, temperature                     | recipes.laplace(prior_mean=, temperature=)
log_marginal_likelihood                     | posterior.log_marginal_likelihood(log_likelihood, prior_precision=)
optimize_prior_precision, marglik           | recipes.tune_prior_precision(posterior), recipes.tune_noise(posterior, data)
method="gridsearch", val_loader             | vmap(lambda a: recipes.laplace(f, params, F, N, a).predict(x))(grid)
marglik_training                            | grad of posterior.log_marginal_likelihood(ll, log_prior.exp()) between steps
predictive with pred_type="glm"             | posterior.predict(x), posterior.probabilities(x)
link_approx="probit", "bridge", "mc"        | posterior.probabilities(link=)
functional_variance, functional_covariance  | posterior.predict(joint=)
predictive_samples with pred_type="nn"      | posterior.sample(generator), then f at each
sample, posterior_scale                     | posterior.sample(generator)
posterior_precision, posterior_covariance   | posterior.weight times F + regul; F.inverse(posterior.regul) over posterior.weight
log_det_posterior_precision                 | F.logdet(posterior.regul) + d log(posterior.weight)
square_norm, log_prob                       | posterior.log_prob(params), normalized
state_dict, load_state_dict                 | torch.save(posterior, file)
"""
