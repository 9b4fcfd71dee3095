"""What mattered in the chosen merge, for a person and as JSON."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from optimizer.results.attribution import Attribution
from optimizer.results.tables import plain_table
from optimizer.results.verdict import format_p_value
from optimizer.results.verdict_view import comparison_record, format_difference


def render_attribution(found: Attribution) -> list[RenderableType]:
    """Lay the attribution out for a terminal; one line where nothing was left out."""
    title = Text(f"\nWhat matters in it: {effective_checkpoints(found)}", style="bold")
    if not found.effects:
        return [title, Text(why_not_measured(found), style="dim" if found.num_variants else "")]
    return [title, effects_table(found), *(Text(sentence) for sentence in found.sentences)]


def effective_checkpoints(found: Attribution) -> str:
    """Say how many checkpoints a merge is made of, and which have no weight."""
    unused = f", {', '.join(found.unused)} unused" if found.unused else ""
    return f"{found.effective:.1f} of {found.num_checkpoints} checkpoints effective{unused}"


def why_not_measured(found: Attribution) -> str:
    """Say why nothing was left out, and how to have it done where that is possible."""
    if not found.num_variants:
        return "It is the base, or one model alone: there is nothing to leave out."
    return (
        "Not asked what each checkpoint adds; `mergefront resume ARCHIVE --set "
        "validation.leave_one_out=true` scores it on the report items."
    )


def attribution_record(found: Attribution) -> dict[str, object]:
    """Return the attribution as JSON."""
    return {
        "checkpoints": found.num_checkpoints,
        "effective_checkpoints": found.effective,
        "unused": list(found.unused),
        "effects": [
            {
                "variant": effect.variant.label,
                "kind": effect.variant.kind,
                "checkpoint": effect.variant.checkpoint,
                "candidate": effect.candidate,
                "recipe_id": effect.variant.recipe.recipe_id,
                "alone": effect.alone,
                "adjusted_p_value": effect.adjusted,
                "helps": effect.helps,
                "hurts": effect.hurts,
                **comparison_record(effect.gap),
            }
            for effect in found.effects
        ],
        "sentences": found.sentences,
    }


def effects_table(found: Attribution) -> Table:
    """Lay out what leaving each thing out changes."""
    table = plain_table()
    table.add_column("chosen merge -")
    names = list(found.effects[0].gap.objectives)
    for title in (*names, "mean", "p (Holm)", "alone"):
        table.add_column(title, justify="right", no_wrap=True)
    for effect in found.effects:
        differences = [f"{effect.gap.objectives[name].mean:+.3f}" for name in names]
        table.add_row(
            effect.variant.label,
            *differences,
            format_difference(effect.gap.mean),
            format_p_value(effect.adjusted).removeprefix("p ").removeprefix("= "),
            "" if effect.alone is None else f"{effect.alone:.3f}",
            style="green" if effect.helps else "red" if effect.hurts else None,
        )
    return table
