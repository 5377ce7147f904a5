"""Figures of many processes: formulas beside what was measured, and what a GPU would hold of a large transformer."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from figures import BLUE, COLORS, GREEN, GREY, ORANGE, log_ticks, panels, styled


@styled
def processes_measured(sent: Mapping, held: Mapping) -> Figure:
    """Bytes that a rank gives to collectives, and the most that it holds; sent, held: what -> (formula, measured)."""
    figure, axes = panels(1, 2, 11, 3.6)
    for axis, pairs, title in zip(axes, (sent, held), ("Given to collectives by a rank", "Held at one time by a rank")):
        places = range(len(pairs))
        formula, measured = ([pair[k] / 1e6 for pair in pairs.values()] for k in (0, 1))
        axis.barh([k - 0.2 for k in places], formula, 0.38, color=BLUE, label="formula")
        axis.barh([k + 0.2 for k in places], measured, 0.38, color=ORANGE, label="measured")
        axis.set_yticks(list(places), list(pairs))
        axis.invert_yaxis()
        axis.set(xlabel="MB", title=title)
        axis.legend(loc="lower right")
    return figure


@styled
def processes_plan(ways: Mapping[str, Mapping[str, Mapping[str, float]]], memory: float) -> Figure:
    """GB on one GPU, by what it is: way -> moment -> what -> GB; memory: of a GPU."""
    figure, axes = panels(1, len(ways), 12, 3.8, sharey=True)
    kinds = list(dict.fromkeys(kind for moments in ways.values() for parts in moments.values() for kind in parts))
    for axis, (way, moments) in zip(axes, ways.items()):
        bottom = [0.0] * len(moments)
        for kind, color in zip(kinds, (*COLORS, GREY, "0.8")):
            heights = [parts.get(kind, 0.0) for parts in moments.values()]
            axis.bar(list(moments), heights, 0.6, bottom=bottom, color=color, label=kind)
            bottom = [b + h for b, h in zip(bottom, heights)]
        axis.axhline(memory, color="k", lw=1, ls=":", label=f"{memory:g} GB")
        axis.set_title(way)
    axes[0].set_ylabel("GB on one GPU")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


@styled
def processes_seconds(ranks: Sequence[int], seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Seconds over the number of GPUs; seconds: what -> seconds for each number."""
    figure, axis = panels(1, 1, 6.5, 3.4)
    for (name, values), color in zip(seconds.items(), (BLUE, ORANGE, GREEN)):
        axis.plot(ranks, values, "o-", color=color, label=name, ms=4)
    axis.set(xlabel="GPUs", ylabel="seconds", title="By the formulas, at the assumed rates")
    log_ticks(axis, "y", subs=(1,))
    log_ticks(axis, "x", subs=(1, 2, 4, 8))
    axis.set_xticks(ranks, [str(n) for n in ranks])
    axis.set_xticks([], minor=True)
    axis.legend()
    return figure
