"""Coming from curvlinops: its names, and ours beside them."""

NOTES = """
Its operators act on lists of parameters of a module, ours on trees like params.  F is a PMat, J a PFMapDense, layers a
LayerCollection.  FisherType.FORWARD_ONLY, whose output factor is the identity, has no counterpart.
"""

ROWS = """
HessianLinearOperator(model, loss, params, data) | hessian(loss, params, data, representation), as PMatImplicit
GGNLinearOperator                                | ggn(f, loss, params, data, representation); fim of a likelihood
FisherMCLinearOperator(mc_samples)               | fim(estimator=, n_samples=, generator=) "mc"
EFLinearOperator                                 | fim(estimator=) "empirical"
loss nn.MSELoss(), of C outputs                  | Gaussian(variance=) of C / 2
reduction="sum"                                  | F * a, a the number of examples
KFACLinearOperator                               | PMatKFAC
EKFACLinearOperator                              | PMatEKFAC
FisherType.TYPE2, FisherType.MC, EMPIRICAL       | fim(estimator=) "exact", "mc", "empirical"
KFACType.EXPAND, KFACType.REDUCE                 | fim(sharing=) "expand", "reduce"
JacobianLinearOperator                           | PFMapImplicit.jvp(v)
TransposedJacobianLinearOperator                 | PFMapImplicit.vjp(u)
CGInverseLinearOperator                          | PMatImplicit.solve(v, regul)
LSMRInverseLinearOperator                        | F.solve(kind=) "lstsq"
NeumannInverseLinearOperator                     | PMatImplicit.solve(v, regul): conjugate gradients converge faster
KFACInverseLinearOperator(damping)               | PMatKFAC.solve(v, regul), F.inverse(regul)
use_heuristic_damping                            | PMatKFAC.solve(kind=) "pi"
use_exact_damping                                | PMatKFAC.solve(kind=) "default"
SubmatrixLinearOperator                          | layers.select(names), then fim(layers=); F.get_block(name)
lanczos_approximate_spectrum                     | PMatImplicit.eigendecomposition: the k largest, no density
lanczos_approximate_log_spectrum                 | PMatImplicit.eigendecomposition, PMatImplicit.logdet(regul, generator=)
LanczosApproximateSpectrumCached                 | PMatImplicit.eigendecomposition
LanczosApproximateLogSpectrumCached              | PMatImplicit.eigendecomposition
hutchinson_trace, hutchpp_trace, xtrace          | PMatImplicit.trace(method=, generator=, n_probes=)
hutchinson_diag, xdiag                           | PMatImplicit.get_diag(method=, generator=, n_probes=)
hutchinson_squared_fro                           | F.frobenius_norm()
op @ vector, op @ matrix                         | F.mv(v), F.mmap(J)
op.trace, op.det, op.logdet, op.frobenius_norm   | F.trace(), F.logdet(regul), F.frobenius_norm()
separate_weight_and_bias                         | PMatKFAC: jointly; apart by layers.from_function(exact=)
check_deterministic                              | fim(f, params, data): f is tried, always
state_dict, from_state_dict                      | torch.save(F, file)
to_scipy                                         | F.to_torch(), trees.ravel
"""
