"""One self-contained HTML page of a search: nothing is fetched when it is opened.

Hovering a point shows its recipe; the legend hides and shows kinds of merges.
"""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

from configs.errors import ArchiveError
from optimizer.report.plot import (
    BASELINE_COLORS,
    CHOSEN_COLOR,
    FRONT_COLOR,
    MERGE_COLOR,
    Picture,
)
from optimizer.results.front_view import ScoredCandidate, format_score, format_weights, gene_table
from optimizer.templates import environment

_PANEL_PIXELS = 250
_SYMBOLS = ("square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon")


def write_html(picture: Picture, path: Path) -> None:
    """Write the page.

    Raises:
        ArchiveError: The file cannot be written.
    """
    figures = [("Front in every pair of objectives", pairs_figure(picture))]
    if len(picture.objectives) >= 3:
        figures.append(("Front in three objectives", _three_dimensions(picture)))
    figures.append(("Hypervolume of the front over evaluations", _volume(picture)))
    figures.append(("Recipes: weights, drop ratios and scores", _parallel(picture)))
    parts = [
        {
            "title": title,
            # The library goes into the page once, with the first figure.
            "figure": pio.to_html(
                figure, include_plotlyjs=number == 0, full_html=False, div_id=f"figure-{number}"
            ),
        }
        for number, (title, figure) in enumerate(figures)
    ]
    template = environment("optimizer.report").get_template("plot_page.html.j2")
    text = template.render(picture=picture, parts=parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArchiveError(
            f"the plot cannot be written to {path}: {error.strerror}; choose another --out",
            path=str(path),
        ) from error


def _kinds(picture: Picture) -> list[tuple[str, Sequence[ScoredCandidate], dict[str, Any]]]:
    """Legend entry, rows and marker of each kind of merge; every merge is in one kind."""

    def others(rows: Iterable[ScoredCandidate]) -> list[ScoredCandidate]:
        return [row for row in rows if not row.candidate.is_baseline and not row.is_chosen]

    kinds: list[tuple[str, Sequence[ScoredCandidate], dict[str, Any]]] = [
        ("dominated merge", others(picture.dominated), {"color": MERGE_COLOR, "size": 6}),
        ("on the front", others(picture.front), {"color": FRONT_COLOR, "size": 8}),
    ]
    for place, (kind, rows) in enumerate(picture.baselines.items()):
        marker = {
            "color": BASELINE_COLORS[place % len(BASELINE_COLORS)],
            "symbol": _SYMBOLS[place % len(_SYMBOLS)],
            "size": 9,
        }
        kinds.append((kind, rows, marker))
    if picture.chosen is not None:
        star = {"color": CHOSEN_COLOR, "symbol": "star", "size": 15}
        kinds.append(("chosen", [picture.chosen], {**star, "line": {"width": 1, "color": "black"}}))
    return [kind for kind in kinds if kind[1]]


def _hover(row: ScoredCandidate) -> str:
    """What a point says of itself; plotly reads a little HTML in it."""
    lines = [f"<b>{html.escape(row.short_id)}</b> {html.escape(row.candidate.origin)}"]
    lines += [
        f"{html.escape(name)} {format_score(score)} ({score.count} items)"
        for name, score in row.scores.items()
    ]
    lines.append(f"mean {row.mean:.3f}")
    lines += [html.escape(part) for part in format_weights(row.candidate.recipe).split()]
    return "<br>".join(lines)


def _values(rows: Sequence[ScoredCandidate], objective: str) -> list[float]:
    return [row.scores[objective].value for row in rows]


def pairs_figure(picture: Picture) -> go.Figure:
    """Return the front in every pair of objectives; of one objective, over the candidates."""
    names = picture.objectives
    if len(names) == 1:
        return _over_candidates(picture)
    traces = [
        go.Splom(
            dimensions=[{"label": name, "values": _values(rows, name)} for name in names],
            name=kind,
            marker=marker,
            text=[_hover(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
            showupperhalf=False,
            diagonal={"visible": False},
        )
        for kind, rows, marker in _kinds(picture)
    ]
    return _styled(go.Figure(traces), height=_PANEL_PIXELS * len(names))


def _over_candidates(picture: Picture) -> go.Figure:
    name = picture.objectives[0]
    traces = [
        go.Scatter(
            x=[row.candidate.index for row in rows],
            y=_values(rows, name),
            mode="markers",
            name=kind,
            marker=marker,
            text=[_hover(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
        for kind, rows, marker in _kinds(picture)
    ]
    figure = _styled(go.Figure(traces), height=2 * _PANEL_PIXELS)
    return figure.update_xaxes(title="candidate").update_yaxes(title=name)


def _three_dimensions(picture: Picture) -> go.Figure:
    names = picture.objectives[:3]
    traces = [
        go.Scatter3d(
            **{axis: _values(rows, name) for axis, name in zip("xyz", names, strict=True)},
            mode="markers",
            name=kind,
            # Three dimensions know fewer symbols.
            marker={
                "color": marker["color"],
                "size": marker["size"] * 0.6,
                "symbol": "diamond" if kind == "chosen" else "circle",
            },
            text=[_hover(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
        for kind, rows, marker in _kinds(picture)
    ]
    figure = _styled(go.Figure(traces), height=3 * _PANEL_PIXELS)
    axes = {f"{axis}axis_title": html.escape(name) for axis, name in zip("xyz", names, strict=True)}
    return figure.update_scenes(**axes)


def _volume(picture: Picture) -> go.Figure:
    line = go.Scatter(
        x=picture.evaluations.tolist(),
        y=picture.volume.tolist(),
        mode="lines",
        line={"shape": "hv", "color": FRONT_COLOR},
        fill="tozeroy",
        fillcolor="rgba(0, 114, 178, 0.12)",
        name="hypervolume",
        hovertemplate="after %{x} evaluations: %{y:.4f}<extra></extra>",
    )
    figure = _styled(go.Figure([line]), height=int(1.5 * _PANEL_PIXELS))
    if 0 < picture.num_before_search < picture.volume.size:
        figure.add_vline(
            picture.num_before_search + 0.5, line_dash="dot", annotation_text="search begins"
        )
    return figure.update_xaxes(title="evaluations").update_yaxes(title="hypervolume")


def _parallel(picture: Picture) -> go.Figure:
    rows = picture.rows
    genes = [_flat(row) for row in rows]
    columns = [(label, [flat[label] for flat in genes]) for label in genes[0]]
    # A gene that never moves is a straight line through nothing.
    columns = [(label, values) for label, values in columns if len(set(values)) > 1]
    columns += [(f"{name} score", _values(rows, name)) for name in picture.objectives]
    means = [row.mean for row in rows]
    lines = go.Parcoords(
        dimensions=[{"label": label, "values": values} for label, values in columns],
        line={"color": means, "colorscale": "Viridis", "colorbar": {"title": "mean"}},
        labelfont={"size": 13},
        tickfont={"size": 11},
    )
    return _styled(go.Figure([lines]), height=2 * _PANEL_PIXELS).update_layout(
        margin={"t": 70, "b": 30, "l": 70, "r": 60}
    )


def _flat(row: ScoredCandidate) -> dict[str, float]:
    """Return the genes by label: ``math weight``, or ``math/mlp drop`` where there are groups."""
    single = len(row.candidate.recipe.groups) == 1
    return {
        f"{checkpoint if single else f'{checkpoint}/{group}'} {kind.removesuffix('_ratio')}": value
        for checkpoint, groups in gene_table(row.candidate.recipe).items()
        for group, pair in groups.items()
        for kind, value in pair.items()
    }


def _styled(figure: go.Figure, *, height: int) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"t": 20, "b": 50, "l": 60, "r": 20},
        legend={"itemsizing": "constant"},
        hoverlabel={"align": "left"},
    )
