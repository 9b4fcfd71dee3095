"""What stands in a written report, section by section; start at :func:`document_of`.

What it cost, what failed and how to make it again is in ``optimizer.report.cost``.
"""

from typing import TYPE_CHECKING

from configs.evaluation import SPLITS, Scored, TaskSpec
from configs.schema import JobConfig, ModelSource
from optimizer.report.cost import cost_section, failures_section, reproduce_section
from optimizer.report.document import Document, Section, Table
from optimizer.report.figures import differences_drawing, front_drawings, volume_drawings
from optimizer.report.plot import Picture
from optimizer.report.report import (
    NO_VERDICT,
    Report,
    baselines_table,
    describe_choice,
    front_title,
    recipe_table,
    report_of,
    splits_table,
)
from optimizer.results.attribution_view import (
    effective_checkpoints,
    effects_table,
    why_not_measured,
)
from optimizer.results.front_view import front_table
from optimizer.results.progress_view import progress_sentences, progress_table
from optimizer.results.verdict_view import best_text, comparison_table
from optimizer.warm_start import describe

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

_NOT_CHOSEN = "No merge was chosen yet: the search has not been validated."


def document_of(archive: "Archive", report: Report | None = None) -> Document:
    """Write the report of a search, finished or not; the same archive gives the same report."""
    report = report_of(archive) if report is None else report
    points = None if report.progress is None else report.progress.points
    picture = Picture.of(archive, report.rows, points) if report.rows else None
    sections = [
        _verdict(report),
        _question(archive),
        _front(report, picture),
        _chosen(report),
        _contribution(report),
        _course(report, picture),
        cost_section(archive, report),
        failures_section(archive),
        _limits(report),
        reproduce_section(archive, report),
    ]
    return Document(
        title=f"Merge search: {report.name}",
        summary=_summary(archive, report),
        sections=tuple(section for section in sections if section.blocks),
    )


def _summary(archive: "Archive", report: Report) -> str:
    checkpoints = len(archive.job.models.checkpoints)
    goals = ", ".join(report.objectives)
    return (
        f"{checkpoints} checkpoint{'s' * (checkpoints != 1)} merged for {goals}: "
        f"{report.num_outcomes} evaluations, {len(report.front)} merges on the front. "
        f"Searched from {archive.created_at[:10]} on."
    )


def _verdict(report: Report) -> Section:
    section = Section("verdict", "The verdict")
    found = report.verdict
    if found is None:
        section.say(_NOT_CHOSEN if report.choice is None else NO_VERDICT, strong=True)
    else:
        section.say(found.sentence, strong=True)
    if found is not None and found.strongest is not None:
        section.add(
            Table.of(
                comparison_table(found.comparisons[found.strongest]),
                f"Chosen merge minus {found.strongest}, the strongest of the baselines, on the "
                "report items",
            )
        )
        section.say(best_text(found))
        section.add(
            differences_drawing(
                "verdict",
                {label: gap.mean for label, gap in found.comparisons.items()},
                title="chosen merge - baseline, on the mean of the objectives",
                caption="Chosen merge minus each baseline on the mean of the objectives: paired "
                "differences on the report items with 95 % intervals, strongest baseline first.",
            )
        )
    if report.chosen:
        caption = "Chosen merge on each split: search flatters, report was never used to choose"
        section.add(Table.of(splits_table(report), caption))
    if found is not None and found.curse is not None:
        section.say(found.curse.sentence)
    if report.baselines:
        section.add(Table.of(baselines_table(report), "Baselines on the report items"))
    if (rival := report.rival) is not None:
        section.say(rival.sentence)
        if rival.gap is not None:
            section.add(Table.of(comparison_table(rival.gap), "Against random search"))
    return section


def _question(archive: "Archive") -> Section:
    section, job = Section("question", "The question"), archive.job
    merge, budget = job.merge, job.budget
    section.say(
        "Which merge of these checkpoints is best at everything, and what are the trade-offs?"
    )
    section.add(_pool_table(archive), _objectives_table(archive))
    weight = f"weights in [{merge.weight.low:g}, {merge.weight.high:g}]"
    if merge.parametrization != "free":
        weight = f"weights as a {merge.parametrization}"
    limits = [f"{budget.evaluations} evaluations"]
    limits += [f"{budget.items} items"] if budget.items else []
    limits += [f"{budget.hours:g} hours"] if budget.hours else []
    limits += [f"{budget.gpu_hours:g} GPU hours"] if budget.gpu_hours else []
    section.list(
        [
            f"Method {merge.method}, {weight}, drop ratios in "
            f"[{merge.drop_ratio.low:g}, {merge.drop_ratio.high:g}]; groups of tensors: "
            f"{', '.join(merge.groups)}.",
            f"Strategy {job.search.strategy}, seed {job.seed}, mask seed {merge.mask_seed}; "
            f"budget: {', '.join(limits)}.",
            "One merge is chosen by the mean of the objectives, weighted "
            + ", ".join(f"{name} {share:.3g}" for name, share in job.preference.items())
            + ".",
        ]
    )
    return section


def _pool_table(archive: "Archive") -> Table:
    models = archive.job.models
    named = {} if models.base is None else {"base": models.base}
    digests = {source.name: source.digest for source in archive.sources.everything}
    rows = [
        (name, _where(model), digests.get(name, ""))
        for name, model in (named | models.checkpoints).items()
    ]
    columns = ("model", "from", "SHA-256 of its tensors")
    return Table(columns, tuple(rows), caption="The pool")


def _where(model: ModelSource) -> str:
    return model.path + (f" at {model.revision}" if model.revision else "")


def _objectives_table(archive: "Archive") -> Table:
    rows = [
        (name, _entry(spec, archive.job), *_counts(archive, spec.task))
        for name, objective in archive.job.objectives.items()
        for spec in objective.tasks
    ]
    columns = ("objective", "task", *(f"{split} items" for split in SPLITS))
    caption = "The objectives, higher is better; the splits share no item"
    return Table(columns, tuple(rows), numeric=frozenset({2, 3, 4}), caption=caption)


def _entry(spec: Scored, job: JobConfig) -> str:
    parts = [spec.metric or "", "" if spec.weight == 1.0 else f"weight {spec.weight:g}"]
    if isinstance(spec, TaskSpec):
        parts.append("" if spec.num_fewshot is None else f"{spec.num_fewshot} examples")
        parts.append("chat template" if job.evaluation.apply_chat_template else "")
    text = ", ".join(part for part in parts if part)
    return spec.task + (f" ({text})" if text else "")


def _counts(archive: "Archive", task: str) -> list[str]:
    return [str(len(archive.manifest.items(split).get(task, ()))) for split in SPLITS]


def _front(report: Report, picture: Picture | None) -> Section:
    section = Section("front", "The front")
    if picture is None:
        section.say("Nothing was scored yet.")
        return section
    section.say("No other merge is at least as good as these in every objective and better in one.")
    section.add(*front_drawings(picture))
    section.add(Table.of(front_table(report.front, report.objectives), front_title(report)))
    return section


def _chosen(report: Report) -> Section:
    section = Section("chosen", "The chosen merge")
    if report.choice is not None:
        section.say(f"{describe_choice(report.choice)}.")
        section.add(Table.of(recipe_table(report.choice.candidate.recipe)))
    return section


def _contribution(report: Report) -> Section:
    section = Section("contribution", "What each checkpoint and drop adds")
    found = report.attribution
    if found is None:
        return section
    section.say(f"{effective_checkpoints(found)}.")
    if not found.effects:
        section.say(why_not_measured(found))
        return section
    section.list(found.sentences)
    section.add(
        differences_drawing(
            "contribution",
            {effect.variant.label: effect.gap.mean for effect in found.effects},
            title="chosen merge - the same with one thing left out",
            caption="What the chosen merge loses when one thing is left out: paired differences of "
            "the mean on the report items with 95 % intervals; right of zero it helps.",
        ),
        Table.of(effects_table(found), "Chosen merge minus the same merge with one thing left out"),
    )
    return section


def _course(report: Report, picture: Picture | None) -> Section:
    section, found = Section("convergence", "How it got there"), report.progress
    if found is None or picture is None:
        return section
    section.add(*volume_drawings(picture, found.points))
    section.add(Table.of(progress_table(found), "Hypervolume of raw scores"))
    section.say(*progress_sentences(found))
    return section


def _limits(report: Report) -> Section:
    section = Section("limits", "What limits this search")
    section.list(f"{finding}." for finding in report.findings)
    if report.warm_start is not None:
        section.say("It began with what an earlier search learnt.")
        section.list(describe(report.warm_start))
    return section
