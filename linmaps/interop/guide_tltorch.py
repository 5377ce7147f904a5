"""Coming from tensorly-torch: its names, and ours beside them."""

NOTES = """
Its modules hold what here is a spec and its params.  Weights are [in, out] here; the tensor's modes are out first, as there.
"""

ROWS = """
FactorizedLinear(in_tensorized_features, ...)   | Factorized(in_shape=, out_shape=, bias=)
FactorizedLinear(factorization, rank)           | Factorized(factorization=, rank=), ranks after cutting in ranks
FactorizedLinear(implementation)                | Factorized(implementation=), "auto" besides
FactorizedLinear(n_layers, checkpointing)       | Factorized(n_layers=, checkpointing=)
a trained FactorizedLinear                      | from_module(module), or Factorized(compat=) for its ranks
FactorizedLinear.forward(x, indices)            | Factorized.apply(params, x, layer)
FactorizedLinear.get_linear(indices), layer[i]  | Factorized.select(params, layer) and Factorized.layers(params)
FactorizedLinear.reset_parameters               | Factorized.init(generator, std=)
FactorizedLinear.from_linear(linear, rank)      | factorize(weight, bias, rank=, n_modes=)
FactorizedLinear.from_linear_list               | factorize(weight, bias) with lists
decomposition_kwargs                            | factorize(n_sweeps=, sketch=, start=, n_power=)
weight.to_matrix(), weight.to_tensor()          | Factorized.effective_W(params, layer)
FactorizedEmbedding                             | Factorized(bias=) and Factorized.rows(params, idx, layer)
FactorizedEmbedding.from_embedding              | factorize(weight) of the embedding
FactorizedConv                                  | FactorizedConv(in_channels=, out_channels=, kernel_size=)
FactorizedConv.forward(x)                       | FactorizedConv.apply_conv(params, x, stride=, padding=)
FactorizedConv.from_conv(conv)                  | factorize_conv(weight, bias)
FactorizedConv.transduct(kernel_size, mode)     | FactorizedConv.transduct(params, size, mode), new params
weight.transduct(new_dim, mode)                 | Factorized.transduct(params, size, mode, side=), an axis more in W
weight[1:3, :], FactorizedTensor.__getitem__    | Factorized.slice(params), FactorizedConv.slice(params), with slices
FactorizedConv(n_layers), from_conv_list        | FactorizedConv(n_layers=), factorize_conv(weight, bias) with lists
FactorizedConv.get_conv(indices)                | FactorizedConv.select(params, layer), or layer of FactorizedConv.apply_conv
TCL(input_shape, rank)                          | Kronecker(in_shape=, out_shape=) and Kronecker.apply_tensor(params, x)
TRL(input_shape, output_shape)                  | Factorized(in_shape=, out_shape=) and Factorized.apply_tensor(params, x)
TRL.init_from_linear                            | factorize(weight, bias, in_shape=, out_shape=)
DenseTensorized, DenseTensor                    | Factorized(factorization=) "dense"
CPTensorized, CPTensor                          | Factorized(factorization=) "cp"; cp_als(T), reconstruct_cp
TuckerTensorized, TuckerTensor                  | Factorized(factorization=) "tucker"; tucker_hosvd(T), reconstruct_tucker
BlockTT                                         | Factorized(factorization=) "blocktt"
TTTensor                                        | Factorized(factorization=) "tt"; tt_svd(T), reconstruct_tt
ComplexCPTensorized, ComplexBlockTT, ...        | Factorized.init(generator, dtype=) of a complex dtype
tensor_init, cp_init, tucker_init, tt_init      | Factorized.init(generator, std=)
get_tensorized_shape(in_features, out_features) | tensorized_shape(n, n_modes), for each
tensor_dropout(factorized_tensor, p)            | tensor_dropout(spec, params, mask), dropout_mask(spec, generator, p)
tensor_lasso(factorization, penalty)            | tensor_lasso(spec, params, weights, penalty=), lasso_prox(weights, step)
remove_tensor_dropout, remove_tensor_lasso      | nothing to remove; prune_ranks(spec, params, keep)
functional.convolve, functional.convNd          | FactorizedConv.apply_conv(params, x)
functional.factorized_linear                    | Factorized.apply(params, x)
functional.trl, factorized_tensordot            | Factorized.apply_tensor(params, x)
utils.FactorList, ParameterList                 | Factorized.shapes: leaves of a dict
"""
