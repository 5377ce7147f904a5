"""Coming from kronfluence: its names, and ours beside them."""

NOTES = """
Its scores are computed by an object that owns a module and writes files, ours by functions of a function, its params and data.
Its score is + gradient of the measurement times (F + damping)^-1 times that of the training loss; ours the derivative in the
weight of a training example, which is minus that.  F is a PMat, layers a LayerCollection, recipes is fisher.recipes.
"""

ROWS = """
prepare_model(model, task)                   | functional(module): f, params; no hooks
Task.compute_train_loss                      | recipes.influence(loss=), a likelihood of fim
Task.compute_measurement                     | recipes.influence(measurement=)
Task.get_influence_tracked_modules           | layers.select(names), then fim(layers=)
Task.get_attention_mask                      | weights of positions: fim(f, params, data), items (x, target, weight)
get_attention_mask of a classifier           | fim(f, params, data) of batches by length: no padding, or its inputs count
post_process_per_sample_gradient             | example_gradients(loss, params, data), then F.mapTMmap(J, reduction)
get_module_summary                           | layers.from_function(f, params, x), printed
FactorArguments, ScoreArguments              | fim(chunk_size=, dtype=), recipes.influence(chunk_size=, rank=)
Analyzer.fit_all_factors                     | fim(f, params, data, representation)
strategy="ekfac", "kfac", "diagonal"         | PMatEKFAC, PMatKFAC, PMatDiag
strategy="identity"                          | PMatEye
use_empirical_fisher                         | fim(estimator=) "empirical", "mc", or "exact" without samples
aggregate_covariance_matrices                | Mean.merge(other); fim(reduce=)
aggregate_lambda_matrices                    | Mean.merge(other); fim(reduce=)
fit_covariance_matrices                      | PMatKFAC.factors
perform_eigendecomposition                   | PMatKFAC.eigendecomposition()
fit_lambda_matrices                          | PMatEKFAC.update_diag(f, params, data)
has_shared_parameters                        | layers.from_function: nothing to say, shared leaves are seen
covariance_max_examples, lambda_max_examples | fim(f, params, data): of the examples that data hold
covariance_module_partitions                 | fim(layers=) with layers.select(names)
lambda_module_partitions                     | fim(layers=) with layers.select(names)
covariance_data_partitions                   | Mean.add(tree, n), Mean.merge(other)
lambda_data_partitions                       | Mean.add(tree, n), Mean.merge(other)
activation_covariance_dtype, lambda_dtype    | fim(dtype=)
gradient_covariance_dtype                    | fim(dtype=)
amp_dtype, amp_scale                         | torch.autocast around f alone; nothing to scale
per_sample_gradient_dtype, score_dtype       | fim(dtype=): of sums; else that of params
precondition_dtype                           | fim(dtype=): of sums; else that of params
offload_activations_to_cpu                   | fim(chunk_size=), fim(layers=): less at once
load_all_factors, load_covariance_matrices   | torch.load of torch.save(F, file)
load_pairwise_scores, load_self_scores       | torch.load: scores are tensors
compute_pairwise_scores                      | recipes.influence(f, params, data, F, test)
compute_self_scores                          | recipes.self_influence(f, params, data, F)
use_measurement_for_self_influence           | recipes.self_influence(measurement=)
damping_factor, a number                     | recipes.influence(regul=)
damping_factor=None, the heuristic           | F.relative(c) as regul, c = 0.1
compute_per_module_scores                    | recipes.influence(per_layer=)
compute_per_token_scores                     | recipes.influence(per_token=)
aggregate_query_gradients                    | recipes.influence(aggregate=) "test"
aggregate_train_gradients                    | recipes.influence(aggregate=) "data"
query_gradient_low_rank, use_full_svd        | recipes.influence(rank=): the best one, by a full decomposition
query_gradient_accumulation_steps            | recipes.influence(chunk_size=): tests held at once
data_partitions, module_partitions           | recipes.influence(chunk_size=), recipes.influence(layers=)
per_device_train_batch_size                  | recipes.influence(f, params, data, F, test): batches as they come
"""
