"""Figures of grown networks: channels behind pooling, a transformer beside those of fixed size."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from figures import BLUE, COLORS, GREY, ORANGE, log_ticks, panels, styled


@styled
def growth_channels(batches: dict[str, Tensor], courses: dict[tuple[str, str], Tensor]) -> Figure:
    """Training loss over batches seen, one panel per set of images; courses: (images, label) -> losses [phases]."""
    figure, axes = panels(1, len(batches), 10, 3.8)
    for axis, (which, seen) in zip(axes, batches.items()):
        own = {name: losses for (images, name), losses in courses.items() if images == which}
        for color, (name, losses) in zip(COLORS, own.items()):
            axis.plot(seen, losses, "o-", color=color, label=name, ms=4)
        axis.set(xlabel="batches of 64", ylabel="training loss, nats", title=f"{which}: 2 to 16 channels, mean of 8")
        log_ticks(axis, "x", "y")
    axes[0].legend()
    return figure


@styled
def growth_transformer(models: dict[str, Sequence[Sequence[tuple[float, float]]]]) -> Figure:
    """Held-out loss over operations, one line per seed; models: label -> curves of (operations in 1e9, loss)."""
    figure, axis = panels(1, 1, 7.5, 4)
    for (name, curves), color in zip(models.items(), (BLUE, ORANGE, GREY)):
        for k, curve in enumerate(curves):
            axis.plot(*zip(*curve), color=color, lw=1, label=name if k == 0 else None)
    axis.set(xlabel="operations, 1e9", ylabel="held-out loss, nats a letter", title="The same compute, grown and fixed")
    axis.legend()
    return figure
