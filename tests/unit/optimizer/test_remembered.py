"""What an archive says of recipes that took their workers."""

import dataclasses

from optimizer.remembered import deadly_recipes, past_of
from tests.contract.archive_examples import example_archive, example_candidate, failed
from workers.attempts import given_up
from workers.toll import Loss


def test_recipes_that_took_their_workers_are_known_from_the_archive(tmp_path):
    lost = {"error_class": "WorkerLostError"}
    with example_archive(tmp_path / "run.sqlite") as archive:
        candidates = [example_candidate(index) for index in range(4)]
        for candidate in candidates:
            archive.record_proposal(candidate)
        for index, change in enumerate(
            (
                {**lost, "message": given_up(2, 2, "it died")},
                {**lost, "message": given_up(12, 0, "it died")},
                {},
            )
        ):
            archive.record_outcome(dataclasses.replace(failed(index), **change))
        assert deadly_recipes(archive) == {
            candidates[0].recipe.recipe_id: given_up(2, 2, "it died"),
        }


def test_past_is_that_of_the_archive_and_what_happens_is_kept_there(tmp_path):
    lost = {"error_class": "WorkerLostError", "message": given_up(2, 2, "it died")}
    with (
        example_archive(tmp_path / "run.sqlite") as archive,
        example_archive(tmp_path / "other.sqlite") as other,
    ):
        for known, index in ((archive, 0), (other, 0), (other, 1)):
            known.record_proposal(example_candidate(index))
        other.record_outcome(dataclasses.replace(failed(1), **lost))
        loss = Loss(failed(0).key, 1, "node", "WorkerLostError", "it died")
        past_of(archive, other).keep(loss)

        past = past_of(archive, other)
        assert list(past.losses) == [loss]
        assert past.deadly == {example_candidate(1).recipe.recipe_id: lost["message"]}
        assert other.losses() == []
