"""The peer of influences: kronfluence 1.0.1; a test and a bench compare with it.

Optional and never a requirement.  Its analyzer writes factors and scores to files, in a folder that is given.
"""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.fisher import peers

ABSENT = (
    "needs the peer: pip install --no-deps --target DIR kronfluence==1.0.1 accelerate safetensors einconv einops opt_einsum "
    "huggingface_hub psutil packaging pyyaml, and TORCHGROVE_PEERS=DIR"
)


def installed() -> bool:
    return all(peers.load(name) is not None for name in ("kronfluence", "accelerate", "safetensors"))


class Scores:
    """Factors of a module fitted to data `(x, y)` by the cross-entropy summed over positions, and scores made of them.

    loss(module, x, y) -> a number; damping a tenth of the mean eigenvalue of each module, full decompositions.
    """

    def __init__(self, module: Any, loss: Any, data: Any, test: Any, folder: str, batch: int) -> None:
        from kronfluence import Analyzer, FactorArguments, Task, prepare_model

        class Of(Task):  # type: ignore[misc]
            def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
                return loss(model, *batch)

            def compute_measurement(self, batch: Any, model: Any) -> Any:
                return loss(model, *batch)

        self.batch, self.data, self.test = batch, TensorDataset(*data), TensorDataset(*test)
        with quiet():
            task = Of()
            self.analyzer = Analyzer(
                "factors",
                prepare_model(copy.deepcopy(module), task),
                task,
                cpu=True,
                output_dir=folder,
                disable_tqdm=True,
            )
            own = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
            self.analyzer.fit_all_factors("factors", self.data, per_device_batch_size=batch, factor_args=own)

    def pairwise(self, **options: Any) -> dict[str, Tensor]:
        """Scores by module, or of all modules."""
        from kronfluence import ScoreArguments

        with quiet():
            self.analyzer.compute_pairwise_scores(
                "pairs",
                "factors",
                self.test,
                self.data,
                per_device_query_batch_size=len(self.test),
                per_device_train_batch_size=self.batch,
                score_args=ScoreArguments(damping_factor=None, use_full_svd=True, **options),
                overwrite_output_dir=True,
            )
            return dict(self.analyzer.load_pairwise_scores("pairs"))

    def own(self) -> dict[str, Tensor]:
        """Self-influences."""
        from kronfluence import ScoreArguments

        with quiet():
            self.analyzer.compute_self_scores(
                "own",
                "factors",
                self.data,
                per_device_train_batch_size=self.batch,
                score_args=ScoreArguments(damping_factor=None),
                overwrite_output_dir=True,
            )
            return dict(self.analyzer.load_self_scores("own"))


@contextlib.contextmanager
def quiet() -> Any:
    """Without what it prints and warns of."""
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Tokens(torch.nn.Module):
    """A network on sequences `[B, T, width]`, with logits at each position."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(width, width), torch.nn.Linear(width, width)
        self.c = torch.nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(torch.tanh(self.b(h.cumsum(1) / 4)))


def summed(module: Any, x: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of logits at each position, summed."""
    return torch.nn.functional.cross_entropy(module(x).flatten(0, 1), y.flatten(), reduction="sum")
