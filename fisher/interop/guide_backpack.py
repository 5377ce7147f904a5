"""Coming from BackPACK: its names, and ours beside them."""

NOTES = """
Its extensions hang quantities on the parameters of an extended module during a backward pass, ours are returned by functions;
its sums follow the reduction of the loss, ours are means over examples.  F is a PMat, J a PFMapDense.
"""

ROWS = """
extend(model), extend(loss), backpack(...)      | functional(module): f, params; no hooks
BatchGrad                                       | example_gradients(loss, params, data)
BatchL2Grad                                     | example_gradients(loss, params, data), then sums of torch.square over each leaf
SumGradSquared                                  | fim(estimator=) "empirical" as PMatDiag
Variance                                        | fim(estimator=, centered=) "gradient_covariance" as PMatDiag
DiagGGNExact, BatchDiagGGNExact                 | PMatDiag, F.get_diag(); of each example by torch.func.vmap
DiagGGNMC, BatchDiagGGNMC                       | fim(estimator=, n_samples=, generator=) "mc" as PMatDiag
DiagHessian, BatchDiagHessian                   | hessian(loss, params, data, representation), then F.get_diag()
SqrtGGNExact, SqrtGGNMC                         | PMatLowRank.rows
KFLR                                            | fim(estimator=) "exact" as PMatKFAC
KFAC                                            | fim(estimator=, n_samples=, generator=) "mc" as PMatKFAC
KFRA                                            | PMatKFAC: the exact output gradients, not a recursion of means
HBP                                             | PMatKFAC, PMatBlockDiag
GGNMP                                           | PMatImplicit, F.mv(v)
HMP, PCHMP                                      | hessian(loss, params, data, representation), then F.mv(v)
MSELoss(reduction="mean") of C outputs          | Gaussian(variance=) of C / 2
CrossEntropyLoss(reduction="mean" or "sum")     | Categorical(class_axis=): a mean; times the number of examples
hessian_vector_product, ggn_vector_product      | F.mv(v) of hessian, of ggn
SumModule, Parallel, convert_module_to_backpack | functional(module): branches are functions like any
BackpropExtension, hook_store_io                | layer_io(f, params, x, layers, cotangent); rules.register
backpack.hessianfree                            | ggn(f, loss, params, data, representation), PMatImplicit
disable, retain_graph                           | F.to_torch(): nothing is kept between calls
"""
