import pytest

from configs.errors import ArchiveError, ConfigError
from optimizer.archive.archive import Archive
from optimizer.results.select import choose, recorded_choice
from tests.unit.optimizer.synthetic_archive import Merge, build

# Candidate 0 is the best on search items, candidate 1 on select items; 2 is a specialist.
MERGES = (
    Merge((0.5, 0.5, 0.5), search=(0.9, 0.9, 0.9), select=(0.6, 0.6, 0.6)),
    Merge((1.0, 0.5, 0.5), search=(0.7, 0.7, 0.7), select=(0.8, 0.7, 0.7), report=(0.7, 0.7, 0.7)),
    Merge((0.0, 0.0, 1.0), search=(0.1, 0.2, 0.9), select=(0.1, 0.2, 0.9)),
    Merge((0.0, 1.0, 0.0), search=(0.2, 1.0, 0.2)),
    Merge((1.5, 1.5, 1.5), search=None),
)


@pytest.fixture
def archive(tmp_path):
    with Archive.open(build(tmp_path / "a.sqlite", MERGES, chosen=1)) as archive:
        yield archive


def test_choice_is_that_of_the_search_without_wishes(archive):
    choice = choose(archive)
    assert (choice.candidate.index, choice.split) == (1, "select")
    assert choice.rule == "the choice of the search"


def test_preference_is_measured_on_select_scores_when_there_are_some(archive):
    assert choose(archive, prefer={"instruct": 1.0}).candidate.index == 1
    assert choose(archive, prefer={"math": 1.0}).candidate.index == 2


def test_preference_weights_are_relative(archive):
    small = choose(archive, prefer={"math": 0.03, "code": 0.01})
    large = choose(archive, prefer={"math": 3.0, "code": 1.0})
    assert small.candidate.index == large.candidate.index == 2
    assert small.rule == large.rule == "best mean (code 0.25, math 0.75) on the select split"


def test_floors_exclude_merges_before_the_preference_decides(archive):
    choice = choose(archive, prefer={"math": 1.0}, floors={"code": 0.65})
    assert choice.candidate.index == 1
    assert "with code >= 0.65" in choice.rule


def test_floor_is_met_by_an_equal_score(archive):
    assert choose(archive, floors={"math": 0.9}).candidate.index == 2


def test_floors_that_nothing_meets_name_the_best_reachable_values(archive):
    with pytest.raises(ConfigError) as caught:
        choose(archive, floors={"math": 0.85, "code": 0.65})
    text = caught.value.message
    assert "no merge meets every floor on the select split" in text
    assert "math=0.85: the best `math` is 0.900" in text
    assert "0.700 where the other floors hold" in text
    assert len(caught.value.problems) == 2


def test_search_scores_decide_and_are_named_when_nothing_was_validated(tmp_path):
    path = build(tmp_path / "b.sqlite", [Merge((1, 0, 0), (0.5, 0.5, 0.5)), MERGES[3]])
    with Archive.open(path) as archive:
        choice = choose(archive)
        assert (choice.candidate.index, choice.split) == (0, "search")
        assert choose(archive, prefer={"code": 1.0}).candidate.index == 1


def test_earliest_of_equal_merges_is_chosen(tmp_path):
    merges = [Merge((weight, 0, 0), (0.5, 0.5, 0.5)) for weight in (0.3, 0.1, 0.2)]
    with Archive.open(build(tmp_path / "c.sqlite", merges)) as archive:
        assert choose(archive).candidate.index == 0


def test_every_unknown_objective_is_named_with_the_nearest(archive):
    with pytest.raises(ConfigError) as caught:
        choose(archive, prefer={"maths": 1.0}, floors={"cod": 0.5})
    assert [problem.path for problem in caught.value.problems] == ["--prefer", "--at-least"]
    assert "did you mean `math`?" in caught.value.message
    assert "did you mean `code`?" in caught.value.message


@pytest.mark.parametrize(
    ("prefer", "floors", "message"),
    [
        ({"math": -1.0}, None, "must be a number >= 0, found -1.0"),
        ({"math": float("nan")}, None, "must be a number >= 0, found nan"),
        ({"math": 0.0}, None, "at least one weight must be > 0"),
        (None, {"math": float("inf")}, "floor of `math` must be a number, found inf"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(archive, prefer, floors, message):
    with pytest.raises(ConfigError, match=message):
        choose(archive, prefer=prefer, floors=floors)


def test_id_prefix_finds_any_scored_merge_whatever_its_case(archive):
    wanted = archive.candidate(3)
    choice = choose(archive, recipe_id=wanted.recipe.recipe_id[:12].upper())
    assert choice.candidate.index == 3


def test_candidate_that_somebody_chose_keeps_the_rule_in_one_line(archive):
    choice = recorded_choice(archive, 3, "best mean\n (math 1)")
    assert (choice.candidate.index, choice.rule) == (3, "best mean (math 1)")
    assert recorded_choice(archive, 0).rule == "candidate 0"
    for index, message in ((4, "never scored"), (5, "no candidate 5")):
        with pytest.raises(ArchiveError, match=message):
            recorded_choice(archive, index)


def test_id_of_a_failed_candidate_is_refused(archive):
    failed = archive.candidate(4).recipe.recipe_id
    with pytest.raises(ConfigError, match=f"no scored recipe begins with `{failed[:10]}`"):
        choose(archive, recipe_id=failed[:10])


def test_ambiguous_id_lists_the_matches(tmp_path):
    merges = [Merge((step / 40, 0, 0), (0.5, 0.5, 0.5)) for step in range(17)]
    with Archive.open(build(tmp_path / "d.sqlite", merges)) as archive:
        ids = [candidate.recipe.recipe_id for candidate in archive.candidates()]
        # 17 ids and 16 digits: two must begin alike.
        prefix = next(name[0] for name in ids if sum(o[0] == name[0] for o in ids) > 1)
        with pytest.raises(ConfigError, match=f"`{prefix}` names . recipes: {prefix}"):
            choose(archive, recipe_id=prefix)


def test_unknown_id_points_to_the_front(archive):
    with pytest.raises(ConfigError, match=r"mergefront front .*a\.sqlite` lists ids such as"):
        choose(archive, recipe_id="xyz")


def test_empty_id_is_refused(archive):
    with pytest.raises(ConfigError, match="no scored recipe begins with ``"):
        choose(archive, recipe_id="")


def test_id_beside_other_wishes_is_refused(archive):
    with pytest.raises(ConfigError, match="leave --prefer, --at-least and --knee out"):
        choose(archive, recipe_id="a", prefer={"math": 1.0})


def test_same_recipe_proposed_twice_is_one_recipe(tmp_path):
    twice = [Merge((1, 0, 0), (0.5, 0.5, 0.5)), Merge((1, 0, 0), (0.6, 0.5, 0.5))]
    with Archive.open(build(tmp_path / "e.sqlite", twice)) as archive:
        recipe_id = archive.candidate(0).recipe.recipe_id
        assert choose(archive, recipe_id=recipe_id).candidate.index == 0


def test_archive_without_scores_says_how_to_go_on(tmp_path):
    with (
        Archive.open(build(tmp_path / "f.sqlite", [MERGES[4]])) as archive,
        pytest.raises(ArchiveError, match="no candidate was scored yet; continue with"),
    ):
        choose(archive)
