import json

import pytest
import yaml

from optimizer.archive.archive import Archive
from optimizer.publish.export import recipe_json
from optimizer.publish.model_card import merged_cards, model_card
from optimizer.results.select import choose
from tests.unit.optimizer.synthetic_archive import Merge, build

MERGES = (
    Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
    Merge((0.7, 0.6, 0.5), (0.9,) * 3, select=(0.8,) * 3, report=(0.75, 0.7, 0.65), drop=0.25),
    Merge((0.1, 0.2, 0.9), (0.2, 0.2, 1.0), select=(0.2, 0.2, 1.0)),
)


def card_of(archive: Archive, out_name: str = "merged", **wish: object) -> str:
    choice = choose(archive, **wish)
    cards = merged_cards(archive, choice.candidate.recipe)
    return model_card(archive, choice, out_name=out_name, cards=cards)


@pytest.fixture
def archive(tmp_path):
    with Archive.open(build(tmp_path / "a.sqlite", MERGES, chosen=1)) as archive:
        yield archive


@pytest.fixture
def card(archive):
    return card_of(archive)


def table_rows(card: str, first_cell: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith(f"| {first_cell} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_card_begins_with_metadata_that_the_hub_reads(card):
    _, front_matter, _ = card.split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    del metadata["model-index"]
    assert metadata == {"library_name": "transformers", "tags": ["merge", "mergefront"]}


def test_card_names_base_models_that_came_from_the_hub(tmp_path):
    models = {
        "base": "org/base",
        "checkpoints": {
            "instruct": "org/a",
            "code": {"path": "org/b", "revision": "abc"},
            "math": "s3://bucket/math",
        },
    }
    with Archive.open(build(tmp_path / "b.sqlite", MERGES, chosen=1, models=models)) as archive:
        card = card_of(archive)
    metadata = yaml.safe_load(card.split("---\n", 2)[1])
    assert metadata["base_model"] == ["org/base", "org/a", "org/b"]
    assert metadata["base_model_relation"] == "merge"
    assert "| code | `org/b` at `abc` |" in card
    assert "| math | `s3://bucket/math` |" in card


def test_card_lists_every_source_with_its_digest(archive, card):
    for source in archive.sources.everything:
        assert table_rows(card, source.name)[0][-1] == f"`{source.digest}`"
    assert "/models/" not in card


def test_card_holds_the_recipe(archive, card):
    assert ["math", "all", "0.5", "0.25"] in table_rows(card, "math")
    assert archive.candidate(1).recipe.recipe_id in card
    assert archive.weights_digest(1) in card
    assert "DARE drops a share p" in card


def test_card_shows_scores_of_all_splits_side_by_side(card):
    rows = table_rows(card, "math")
    assert ["math", "0.900 ± 0.069 (20)", "0.800 ± 0.092 (20)", "0.650 ± 0.109 (20)"] in rows
    assert table_rows(card, "\\*\\*mean\\*\\*".replace("\\", "")) == [
        ["**mean**", "0.900", "0.800", "0.700"]
    ]


def test_card_shows_baselines_the_verdict_and_the_command(archive, card):
    assert ["base", "0.100", "0.100", "0.100", "0.100", "+0.600 ± 0.065"] in table_rows(
        card, "base"
    )
    assert "beats every baseline" in card
    short = archive.candidate(1).recipe.recipe_id[:10]
    assert f"mergefront export a.sqlite --id {short} --out merged" in card


def test_card_of_another_merge_claims_no_verdict(archive):
    card = card_of(archive, prefer={"math": 1.0})
    assert "not scored on the report items" in card
    assert "beats every baseline" not in card
    assert "this merge - baseline" not in card
    assert "best mean (math 1) on the select split" in card


def test_card_has_no_hole_and_no_markup_left_over(card):
    assert "{{" not in card
    assert "{%" not in card
    assert "\n\n\n" not in card


def test_same_choice_gives_the_same_card(archive, card):
    assert card_of(archive) == card


def test_recipe_json_rebuilds_the_recipe_and_the_job(archive):
    from configs.recipe import MergeRecipe
    from configs.schema import JobConfig

    content = json.loads(recipe_json(archive, choose(archive)))
    recipe = MergeRecipe.model_validate(content["recipe"])
    assert recipe.recipe_id == content["recipe_id"] == archive.candidate(1).recipe.recipe_id
    assert content["weights_digest"] == archive.weights_digest(1)
    assert JobConfig.model_validate(content["job"]).digest == archive.job.digest
    # Where the archive is says nothing about the merge, and may name servers and users.
    assert content["job"]["archive"] == "a.sqlite"
    assert content["scores"]["report"]["math"]["value"] == pytest.approx(0.65)
