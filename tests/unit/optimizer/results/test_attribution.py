"""What in the chosen merge matters: the variants, their place in the archive, what they say."""

import json

import pytest

from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.driver import run_search
from optimizer.report.report import report_of, report_record
from optimizer.results.attribution import attribution, record_variants, variants_of
from optimizer.results.front_view import scored_candidates
from optimizer.results.select import choose
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from tests.unit.optimizer.synthetic_archive import Merge, build

pytestmark = pytest.mark.slow  # whole searches


def weights_of(recipe) -> list[float]:
    return [row[0] for row in recipe.weights]


def drops_of(recipe) -> list[float]:
    return [row[0] for row in recipe.drop_ratios]


@pytest.fixture
def space(make_job, make_space):
    return make_space(make_job())


def test_each_checkpoint_is_left_out_and_the_others_stay_as_they_are(space):
    recipe = space.recipe([[0.5], [0.25], [1.0]])
    found = {variant.label: variant.recipe for variant in variants_of(recipe)}
    assert {label: weights_of(recipe) for label, recipe in found.items()} == {
        "without instruct": [0.0, 0.25, 1.0],
        "without code": [0.5, 0.0, 1.0],
        "without math": [0.5, 0.25, 0.0],
    }


def test_weights_of_whole_models_keep_their_sum(make_job, make_space):
    names = ("instruct", "code", "math")
    job = make_job(
        models={"checkpoints": {name: f"zoo/{name}" for name in names}},
        merge={"method": "linear", "parametrization": "simplex"},
    )
    recipe = make_space(job).recipe([[0.5], [0.25], [0.25]])
    first = variants_of(recipe)[0]
    assert weights_of(first.recipe) == pytest.approx([0.0, 0.5, 0.5])


def test_drops_are_taken_away_together_and_one_by_one_where_they_act(space):
    recipe = space.recipe([[0.5], [0.0], [1.0]], [[0.3], [0.4], [0.6]])
    found = {variant.label: variant.recipe for variant in variants_of(recipe)}
    assert {label: drops_of(recipe) for label, recipe in found.items()} == {
        "without instruct": [0.0, 0.4, 0.6],
        "without math": [0.3, 0.4, 0.0],
        "no drops": [0.0, 0.4, 0.0],
        "no drops of instruct": [0.0, 0.4, 0.6],
        "no drops of math": [0.3, 0.4, 0.0],
    }
    one = space.recipe([[0.5], [0.0], [1.0]], [[0.0], [0.4], [0.6]])
    assert [v.label for v in variants_of(one) if v.kind == "undropped"] == ["no drops"]


def test_nothing_can_be_left_out_of_a_single_model_without_a_base(make_job, make_space):
    job = make_job(
        models={"checkpoints": {"a": "zoo/a", "b": "zoo/b"}},
        merge={"method": "linear", "parametrization": "simplex"},
    )
    assert variants_of(make_space(job).recipe([[0.0], [1.0]])) == []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.sqlite"


def search(path, *, budget: int = 40, leave_one_out: bool = True):
    """Run or go on with a scripted search; returns the result."""
    validation = {"candidates": 4, "leave_one_out": leave_one_out}
    changes = {"budget": {"evaluations": budget}, "validation": validation}
    job, manifest = scripted_search.make_job(path, **changes), scripted_search.make_manifest()
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(
            path, job=job, job_path=None, sources=scripted_search.make_sources(), manifest=manifest
        )
    with archive, ScriptedPool(job, manifest) as pool:
        return run_search(archive, pool, SearchSpace(job, archive.sources), job=job)


def test_variants_are_scored_on_report_items_only(path):
    chosen = search(path).chosen
    with Archive.open(path) as archive:
        variants = [c for c in archive.candidates() if c.is_attribution]
        labels = [v.label for v in variants_of(archive.candidate(chosen).recipe)]
        assert len(variants) == len(labels) >= 3
        assert {c.origin.removeprefix("attribution:") for c in variants} == set(labels)
        for split, expected in (("search", False), ("select", False), ("report", True)):
            done = {outcome.key.candidate for outcome in archive.outcomes(split)}
            assert all((c.index in done) == expected for c in variants)
        assert len(archive.observations()) == 40


def test_variants_are_asked_for_afterwards_and_only_once(path):
    chosen = search(path, leave_one_out=False).chosen
    with Archive.open(path) as archive:
        assert not any(c.is_attribution for c in archive.candidates())
        assert attribution(archive).effects == ()
    assert search(path).chosen == chosen
    with Archive.open(path) as archive:
        proposed = archive.candidates()
    search(path)
    with Archive.open(path) as archive:
        assert len(archive.candidates()) == len(proposed)
        assert len(attribution(archive).effects) >= 3


def test_search_that_goes_on_after_attribution_neither_counts_nor_sees_it(path, tmp_path):
    search(path, budget=30)
    result = search(path, budget=45)
    assert result.num_outcomes == 45
    with Archive.open(path) as archive:
        variants = {c.index for c in archive.candidates() if c.is_attribution}
        assert variants
        later = [c for c in archive.candidates() if c.index > min(variants)]
        assert len([c for c in later if not c.is_attribution]) >= 5
        assert not any(variants & set(archive.pending(c.index)) for c in later)
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []
        told = {seen.candidate.index for seen in archive.observations()}
        assert not variants & told
        assert not variants & {row.candidate.index for row in scored_candidates(archive, "report")}


# Weights 0.7, 0.6 and 0; the variants' scores are set.
CHOSEN = Merge((0.7, 0.6, 0.0), (0.9,) * 3, select=(0.8,) * 3, report=(0.8,) * 3, drop=0.5)
BAD = Merge((0.0, 1.0, 0.0), (0.2,) * 3, report=(0.2,) * 3, origin="baseline:checkpoint code")
GOOD = Merge((1.0, 0.0, 0.0), (0.5,) * 3, report=(0.5,) * 3, origin="baseline:checkpoint instruct")


@pytest.fixture
def judge(tmp_path):
    """Build an archive where each variant of CHOSEN has a report score of its own."""

    def judge(scores: dict[str, float]):
        from tests.unit.optimizer.synthetic_archive import _outcome

        path = build(tmp_path / "a.sqlite", [BAD, GOOD, CHOSEN], chosen=2)
        with Archive.open(path, writable=True) as archive:
            indices = record_variants(archive, recorded_space(archive), 2)
            labels = [v.label for v in variants_of(archive.candidate(2).recipe)]
            for index, label in zip(indices, labels, strict=True):
                values = (scores[label],) * 3
                archive.record_outcome(_outcome(archive.job, index, "report", values))
        with Archive.open(path) as archive:
            return attribution(archive), report_record(report_of(archive)), archive

    return judge


SCORES = {
    "without instruct": 0.4, "without code": 0.5, "no drops": 0.8,
    "no drops of instruct": 0.95, "no drops of code": 0.55,
}  # fmt: skip


def test_report_says_that_a_bad_checkpoint_helps(judge):
    found, record, _ = judge(SCORES)
    gaps = {effect.variant.label: effect.gap.mean.mean for effect in found.effects}
    assert gaps == pytest.approx({label: 0.8 - score for label, score in SCORES.items()})
    assert found.unused == ("math",)
    assert found.effective == pytest.approx(1.3**2 / (0.49 + 0.36))
    assert found.sentences[:2] == [
        "Left out one by one: instruct, code help.",
        "code helps although it is the worst of them by itself (mean 0.200).",
    ]
    assert json.loads(json.dumps(record, allow_nan=False))["attribution"]["unused"] == ["math"]


def test_report_says_which_drops_mattered(judge):
    found, _, _ = judge(SCORES)
    assert found.sentences[2] == (
        "Dropping made no difference that these items show: +0.000 ± 0.000 against none; "
        "the drops of code did."
    )
    undropped = {effect.variant.checkpoint: effect for effect in found.of("undropped")}
    assert undropped["instruct"].hurts
    assert undropped["code"].helps
    # Two items of three more are right without: nine of 60, and three tests.
    assert undropped["instruct"].adjusted == pytest.approx(2 * 2 / 2**9)


def test_checkpoint_whose_loss_shows_nothing_is_named(judge):
    found, _, _ = judge(SCORES | {"without code": 0.75, "without instruct": 0.95})
    assert found.sentences[0] == (
        "Left out one by one: instruct hurts; without code nothing changes that these items show."
    )


def test_variant_can_be_chosen_by_its_id(judge):
    found, _, archive = judge(SCORES)
    variant = found.effects[0]
    with Archive.open(archive.place) as reader:
        choice = choose(reader, recipe_id=variant.variant.recipe.recipe_id[:12])
    assert choice.candidate.index == variant.candidate
