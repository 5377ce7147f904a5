"""Coming from gromo: its names, and ours beside them."""

NOTES = """
Its modules hold their statistics, pending updates and amplitudes; ours are values: statistics -> delta, new -> grown params.
stats is a Statistics, new a Neurons, delta a Delta, graph a Graph, gstats a GraphStatistics; trees is linmaps.trees.  What
the last column calls "a value" needs no counterpart: there is no state to switch, to reset or to delete.
"""

ROWS = """
LinearGrowingModule(in, out, previous_module)           | Pair(before, after, activation): two layers of your params
Conv2dGrowingModule, restricted and full                | Pair, statistics(taps=) "centre" and "all"; any dimension
post_layer_function, extended_post_layer_function       | Pair.activation, or read from f
layer, weight, bias, get_fan_in_from_layer              | trees.get(params, path): leaves of your tree
number_of_parameters, parameters(), weights_statistics  | trees.leaves(params), trees.Layout.numel; Fit: a table of steps
in_neurons, out_features, input_volume                  | growth.reading.layers.layers_of(params, pair): shapes of leaves
target_in_neurons, missing_neurons, complete_growth     | to_target(current, target), widen(params, pair, k)
number_of_neurons_to_add                                | fixed_proportional(initial, target, steps)
init_computation, update_computation                    | statistics(f, params, data, pair): one pass, s + s merges
reset_computation, store_input, store_pre_activity      | statistics: a value, nothing is stored in layers
compute_statistics, enumerate_dataloader                | statistics(data=, progress=)
tensor_s, tensor_m, tensor_s_growth, tensor_m_prev      | Statistics.S, Statistics.M, Statistics.S_prev, Statistics.M_prev
cross_covariance, covariance_loss_gradient              | Statistics.P, Statistics.E
tensor_n, compute_n_update, projected_v_goal            | Statistics.crossed(change): N = P ΔW' - M_prev
update_computation_true_fisher                          | with_fisher(stats, f, params, data, pair), output_fisher
TensorStatistic, TensorStatiticWithEstimationError      | Statistics, standard_errors(parts), split_half(first, second)
compute_optimal_delta(use_fisher, fisher_shrinkage)     | optimal_delta(stats, ridge, rtol, output_metric=, shrinkage=)
force_pseudo_inverse, dtype                             | optimal_delta: minimum norm always, at the accuracy of stats
delta_raw, optimal_delta_layer                          | Delta.weight, Delta.bias, Delta.joined
parameter_update_decrease                               | Delta.decrease
compute_optimal_updates, _added_parameters              | optimal_neurons(stats, k, target, delta=)
use_projection, use_covariance, use_fisher              | optimal_neurons(target=, input_metric=, output_metric=)
alpha_zero, omega_zero, ignore_singular_values          | zero_in(stats, k), zero_out(stats, k), scale_neurons(new)
statistical_threshold, numerical_threshold              | optimal_neurons(threshold=, noise_floor=, rtol=), noise_floor
TINY, GradMax, SENN-like settings                       | tiny(stats, k), gradmax(stats, k), senn(stats, k)
extended_input_layer, extended_output_layer             | Neurons.fan_out, Neurons.fan_in, Neurons.fan_in_bias
eigenvalues_extension, activation_gradient              | Neurons.eigenvalues, Statistics.slope, Statistics.sigma0
new_neurons_fo_improvement, first_order_improvement     | Neurons.gain, improvement(new, delta): true slopes
scaling_factor, optimal_delta_scaling, the other two    | grow(scale=): (t_delta, t_neurons)
extended_forward                                        | apply_extended(f, params, pair, new, delta, scale, x)
apply_change, _apply_output_changes                     | grow(params, pair, new, delta=, scale=), grow_like
parameter_step(dW, db)                                  | trees.add(a, b)
sub_select_optimal_added_parameters                     | truncate(new, k), keep(new, which), compact(new)
delete_update                                           | grow: a value, the old params stay valid
scale_parameter_update, scale_layer_extension           | grow(scale=), scale_neurons(new, fan_in=, fan_out=)
scale_layer, normalize_optimal_updates                  | normalize(new, delta, params, pair, kind=)
layer_of_tensor, layer_in_extension                     | layer_in_extension(layer, weight), layer_out_extension
add_parameters                                          | add_parameters(layer, added_in_features=, matrix_extension=)
create_layer_extensions, KNOWN_EXTENSION_INITS          | initialize(params, pair, k, fan_in=, fan_out=, generator=)
allocate_layer_extensions, copy_initialization_variance | initialize: rules "copy_uniform", "kaiming_normal", ...
apply_rescaling, apply_neuron_pairing                   | rescale(params, pair, k, kind=), paired(new, noise=)
LinearMergeGrowingModule, previous_tensor_s             | Sum, Graph, graph_statistics, node_delta
ConstantModule, growth from width zero                  | Pair: a leaf [0, r] is a layer, its bias acts
GrowingBatchNorm, LayerNorm, GroupNorm: grow            | Pair.norm: batch norms grow along, other norms mix units
GrowingDropout                                          | statistics(f, params, data, pair): of an f in eval mode
GrowingContainer, select_best_update                    | compare(pairs, news, deltas), statistics of a list of pairs
SequentialGrowingModel, set_growing_layers              | fit_and_grow(f, params, data, pair, order=, target=, k=)
GrowingMLP, Perceptron, GrowingResidualBlock            | Pair: write f; residual sums need nothing special
GrowingDAG, expand_node, define_next_actions            | Graph, candidates(gstats, k, activation), grow_graph
line_search                                             | line_search(f, params, data, pair, new, delta)
gradient_descent, evaluate_model                        | fit_and_grow, torch.func.grad
sqrt_inverse, compute_optimal_added_parameters          | growth.moments.solvers.pseudo_root(a), optimal_neurons(stats, k)
compute_mask_tensor_t, create_bordering_effect_weight   | statistics(taps=): positions meet by an index
pickle, state_dict of a grown net                       | torch.save(grown, file): trees of tensors
"""
