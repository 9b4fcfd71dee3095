"""Figures of the studies: lines over a setting, mean and spread over seeds, as SVG."""

import itertools
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from pandas import DataFrame

from scripts.papers.study import Figure

_PANEL_INCHES = 3.2
_LEGEND_INCHES = 0.3
# Lines are told apart without colours, too.
_LOOKS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))


def draw(figure: Figure, records: DataFrame, path: Path) -> None:
    """Draw one figure: a panel per value of ``panel``, a line per value of ``series``."""
    records = records[records["width"] == figure.width]
    # A study's other records have none of these columns.
    records = records.dropna(subset=[figure.panel, figure.x, figure.value])
    panels = list(dict.fromkeys(records[figure.panel]))
    # The same records give the same file.
    with mpl.rc_context({"svg.hashsalt": figure.name, "font.size": 8}):
        size = (_PANEL_INCHES * len(panels), _PANEL_INCHES + _LEGEND_INCHES)
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            here = records[records[figure.panel] == panel]
            lines = here.groupby(figure.series, sort=False)
            for (name, part), (marker, dashes) in zip(lines, itertools.cycle(_LOOKS), strict=False):
                by_seed = part.groupby([figure.x, "seed"])[figure.value].mean()
                over = by_seed.groupby(figure.x)
                mean, sd = over.mean(), over.std(ddof=1).fillna(0.0)
                style = {"marker": marker, "markersize": 3, "linestyle": dashes}
                axis.plot(mean.index, mean, **style, label=str(name))
                axis.fill_between(mean.index, mean - sd, mean + sd, alpha=0.15)
            axis.set_title(str(panel))
            axis.set_xlabel(figure.x)
        axes[0].set_ylabel(figure.label)
        # Below all panels, where it lies over no line.
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        canvas.suptitle(figure.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, format="svg", metadata={"Date": None})
