"""Coming from nngeometry: its names, and ours beside them."""

NOTES = """
Its matrices are made of a model and a loader, ours of a function, its params and data.  F is a PMat, J a PFMapDense, K a
FMatDense, layers a LayerCollection, trees is linmaps.trees.  Examples come first, J is [B, C, d]; the flat order is that of
`linmaps.trees.ravel`: keys sorted, so a bias before its weight.
"""

ROWS = """
FIM(model, loader, representation, variant)       | fim(f, params, data, representation, likelihood)
variant="classif_logits"                          | Categorical(class_axis=)
variant="classif_binary_logits"                   | Bernoulli()
variant="regression"                              | Gaussian(variance=, covariance=), HeteroscedasticGaussian
variant="segmentation_logits"                     | Segmentation(), sums over positions
variant="classif_logsoftmax"                      | Categorical(): f ends with its logits
FIM_MonteCarlo(trials, covariance)                | fim(estimator=, n_samples=, generator=, noise=) "mc"
per-example loss as function (empirical Fisher)   | fim(estimator=) "empirical" or "gradient_covariance"
Jacobian generator, centering=True                | fim(estimator=, centered=), J.centered(), gram(centered=)
Jacobian generator, function(*batch)              | fim(f, params, data): f(params, x), x may be a tree
verbose                                           | fim(progress=)
Hessian(model, loader, function), its generator   | hessian(loss, params, data, representation): a mean; ggn
Dummy generator                                   | PMat: a matrix keeps no generator
Jacobian(model, loader, function)                 | jacobian(f, params, x, representation)
GramMatrix(model, loader, function)               | gram(f, params, x, x2, kind=)
LayerCollection.from_model(model)                 | layers.from_model(model, params, x), layers.from_function
ignore_unsupported_layers                         | layers.from_function(strict=): no rule, an exact block
add_layer, add_layer_from_model                   | layers.add(layer), layers.select(names), layers.remove
LinearLayer, Conv2dLayer, ..., Parameter          | Layer.shapes, Layer.kind; rules
Affine1d, Cosine1d, WeightNorm1d, WeightNorm2d    | layers.from_function: written in f, like any function
numel(), p_pos, layers[name]                      | layers.numel(), trees.Layout.offsets, layers[name]
named_parameters, get_layerid_module_map          | layers.names(), layers.views(v): by layer
get_common_layers, merge, ==                      | layers.get_common_layers(other), layers.merge(other), ==
im2col or grouped convolution (context managers)  | rules: nothing to switch
PMatDense, PMatBlockDiag, PMatDiag, PMatQuasiDiag | PMatDense, PMatBlockDiag, PMatDiag, PMatQuasiDiag
PMatKFAC, PMatEKFAC, PMatEKFACBlockDiag           | PMatKFAC, PMatEKFAC (corrected at once), PMatEKFACBlockDiag
PMatLowRank, PMatImplicit, PMatEye                | PMatLowRank, PMatImplicit, PMatEye
PMatMixed.from_mapping(map_layers_to)             | fim(layers_to=), PMatMixed
mv, vTMv, mmap, mapTMmap, M @ v, M @ J            | F.mv(v), F.vTMv(v), F.mmap(J), F.mapTMmap(J, reduction)
solve(v, regul), solvePVec, solvePFMap            | F.solve(v, regul): a vector or a map
solve="solve", "default", "svd"                   | F.solve(kind=) "default"; PMatLowRank.solve(kind=) "range"
solve="eigendecomposition", "lstsq"               | F.eigendecomposition(), then solve; F.solve(kind=) "lstsq"
solve="cg", x0, M, rtol, max_iter                 | PMatImplicit.solve(v, regul) with x0, preconditioner, rtol
use_pi, the damping of PMatKFAC                   | PMatKFAC.solve(kind=) "pi"; "default" is (F + regul I)^-1
inv(regul), inverse(regul), pinv(atol)            | F.inverse(regul), F.pinv(rtol, atol=)
pow(p, regul), M ** p                             | F.pow(p, regul), F ** p: no damping unless asked for
trace, get_diag, norm, frobenius_norm             | F.trace(), F.get_diag(), F.norm(ord), F.frobenius_norm()
to_torch, get_block_torch, get_KFE                | F.to_torch(), F.get_block(name), PMatEKFAC.get_KFE(name)
split_weight_bias                                 | PMatEKFAC.get_KFE(name, split_weight_bias), layers.tree(views)
compute_, get_eigendecomposition                  | F.eigendecomposition(), F.get_eigenvalues()
project_to_diag, project_from_diag                | F.project_to_diag(v), F.project_from_diag(u)
update_diag(examples)                             | PMatEKFAC.update_diag(f, params, data)
M + M, M - M, a * M, mm                           | F + F, F - F, a * F, F * a, F.mm(other), PMatSum
size, get_device                                  | F.size(dim), F.device, F.dtype
pickle                                            | torch.save(F, file): a PMat is a pytree of tensors
PVector, from_model, clone, detach                | a tree like params; linmaps.trees
from_model_grad, grad(output, v)                  | torch.func.grad(loss)(params)
copy_to_model, add_to_model                       | trees.add(a, b), then torch.func.functional_call
v + w, v - w, a * v, dot, norm                    | trees.add, trees.sub, trees.scale, trees.dot, trees.norm
v ** p, in-place +=, -=, *=                       | trees.map(torch.square, v): a new tree
PVector.to_torch, to_dict, to_torch_layer, size   | trees.ravel(tree), layers.views(v), trees.Layout.numel
random_pvector, random_pvector_dict               | F.sample(generator, regul); trees.map(torch.randn_like, v)
display_correl                                    | F.to_torch(), then an image
FVector, random_fvector                           | torch.Tensor [B, C]: examples first
PFMapDense.jvp, vjp, +, -, a * J, size            | J.jvp(v), J.vjp(u), J + J, a * J, J.size(dim)
to_torch, to_torch_layer, iter_by_layer           | J.to_torch(), J.jacobian: a tree of leaves [B, C, *leaf]
PFMapDense.from_dict, random_pfmap                | PFMapDense(jacobian, layout)
PFMapImplicit.jvp                                 | PFMapImplicit.jvp(v), PFMapImplicit.vjp(u)
FMatDense.mv, vTMv, norm, trace                   | K.mv(u), K.vTMv(u), K.norm(ord), K.trace()
FMatDense: eigendecomposition, +, -, project      | K.eigendecomposition(), K.solve(u, regul), K + K, K - K
"""
