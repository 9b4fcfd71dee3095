"""The id of a recipe: kept once it is known, and that of what the recipe holds all the same."""

from configs.recipe import Group, MergeRecipe, Source


def make_recipe(weight: float = 0.5) -> MergeRecipe:
    return MergeRecipe(
        method="dare_linear", base=Source(name="base", digest="b" * 8),
        checkpoints=(Source(name="math", digest="m" * 8),),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((weight,),), drop_ratios=((0.1,),), dtype="float32",
    )  # fmt: skip


def test_changed_copy_has_an_id_of_its_own():
    recipe = make_recipe()
    before = recipe.recipe_id
    changed = recipe.model_copy(update={"weights": ((0.7,),)})
    assert changed.recipe_id == make_recipe(0.7).recipe_id != before
    assert recipe.recipe_id == before
    assert recipe.model_copy().recipe_id == before


def test_known_id_is_no_part_of_a_recipe():
    known, new = make_recipe(), make_recipe()
    assert known.recipe_id
    assert known == new
    assert known.model_dump_json() == new.model_dump_json()
