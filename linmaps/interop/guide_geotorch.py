"""Coming from geotorch and torch's own parametrizations: their names, and ours beside them."""

NOTES = """
Theirs change a module's weight [out, in]; here W [in, out] is a pure function of params.  parametrize(module, name, spec)
does theirs with a spec of ours.  A square W of either determinant: Orthogonal(det=).  Promises hold at any params.
"""

ROWS = """
geotorch.orthogonal, Stiefel, SO            | Orthogonal(method=, det=)
geotorch.orthogonal(triv="cayley")          | Orthogonal(method=, base=) of method="cayley"
layer.weight = M.sample()                   | Orthogonal.init(generator), uniform; Orthogonal.from_matrix(W)
geotorch.grassmannian, Grassmannian         | Orthogonal(in_features, out_features); whose columns span the subspace
geotorch.almost_orthogonal, AlmostOrthogonal | Spectral(sigma_min=, sigma_max=) with 1 - lam and 1 + lam
geotorch.low_rank, LowRank                  | LowRank(in_features, out_features, rank)
geotorch.fixed_rank, FixedRank              | FixedRank(in_features, out_features, rank), with a margin sigma_min
geotorch.invertible, GLp                    | Invertible(sigma_min=, sigma_max=)
geotorch.sln, SL                            | UnitDeterminant(in_features)
geotorch.positive_definite, PSD             | PSD(eps=)
geotorch.positive_semidefinite, PSSD        | PSD(in_features)
geotorch.positive_semidefinite_low_rank, PSSDLowRank | PSD(rank=)
geotorch.positive_semidefinite_fixed_rank, PSSDFixedRank | PSD(rank=), of a lower rank only where params are singular
geotorch.symmetric, Symmetric               | Symmetric(in_features)
geotorch.skew, Skew                         | SkewSymmetric(in_features)
geotorch.sphere, Sphere, SphereEmbedded     | UnitNorm(axis=, radius=)
geotorch.alpha_stable, Hurwitz              | Hurwitz(margin=)
geotorch.product.ProductManifold            | Product(maps)
M.in_manifold(X)                            | Orthogonal.violation(W), of every map
geotorch.update_base                        | Orthogonal.of(W, method=): another base
torch.nn.utils.parametrizations.orthogonal  | Orthogonal(method=); Orthogonal.of(W) of a trained weight; from_module(module)
torch.nn.utils.parametrizations.weight_norm | WeightNorm(axis=)
torch.nn.utils.parametrizations.spectral_norm | BoundedNorm(sigma_max=), Spectral(sigma_max=); LipschitzConv(bound=)
torch.nn.utils.parametrize.register_parametrization | parametrize(module, name, spec)
"""
