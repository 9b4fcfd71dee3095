"""What an archive says of recipes that took their workers."""

import dataclasses

from optimizer.remembered import deadly_recipes
from tests.contract.archive_examples import example_archive, example_candidate, failed
from workers.attempts import given_up


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
