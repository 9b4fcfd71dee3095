"""What goes into a row comes out of it bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ArchiveError
from configs.recipe import MergeRecipe
from optimizer.archive.recorded_candidate import decode_candidate
from optimizer.archive.records import (
    blob_to_floats,
    blob_to_scores,
    blob_to_texts,
    floats_to_blob,
    job_to_json,
    json_to_job,
    json_to_sources,
    proposal_row,
    scores_to_blob,
    sources_to_json,
    storable,
    texts_to_blob,
)
from tests.contract.archive_examples import example_candidate, example_job, example_sources

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.floats(), max_size=20))
def test_floats_survive(values) -> None:
    array = np.array(values, dtype=np.float64)
    assert blob_to_floats(floats_to_blob(array)).tobytes() == array.tobytes()


@given(st.lists(st.floats(), max_size=20))
def test_item_scores_survive(values) -> None:
    array = np.array(values, dtype=np.float64)
    found = blob_to_scores(scores_to_blob(array))
    assert found.tobytes() == array.tobytes()
    assert found.flags.writeable


@pytest.mark.parametrize(("share", "bytes_per_item"), [(0.0, 0.1), (0.1, 0.4), (0.5, 0.6)])
def test_item_scores_of_exact_match_take_bits(share, bytes_per_item) -> None:
    right = np.random.default_rng(0).random(256) < share
    assert len(scores_to_blob(right.astype(np.float64))) < 256 * bytes_per_item


def test_floats_are_little_endian_float64() -> None:
    assert floats_to_blob(np.array([1.0, -2.0])) == bytes.fromhex(
        "000000000000f03f00000000000000c0"
    )
    assert floats_to_blob(np.array([1.0], dtype=">f8")) == bytes.fromhex("000000000000f03f")


@given(st.lists(st.text(st.characters(), max_size=20), max_size=5))
def test_texts_survive(texts) -> None:
    assert blob_to_texts(texts_to_blob(texts)) == tuple(texts)


@given(st.text(st.characters(), max_size=30))
def test_storable_text_can_be_stored(text) -> None:
    stored = storable(text)
    assert "\0" not in stored
    assert stored.encode("utf-8").decode("utf-8") == stored
    if "\0" not in text and not any(0xD800 <= ord(char) < 0xE000 for char in text):
        assert stored == text


@given(st.lists(finite, min_size=4, max_size=4), st.lists(finite, min_size=8, max_size=8))
def test_candidate_survives(weights, genes) -> None:
    original = example_candidate(3, seen=2)
    recipe = MergeRecipe.model_validate(
        original.recipe.model_dump() | {"weights": tuple((weight,) for weight in weights)}
    )
    candidate = dataclasses.replace(original, genotype=np.array(genes), recipe=recipe)

    row = proposal_row(candidate, [0, 1], "now")
    found = decode_candidate(row)

    assert found.same_proposal(candidate)
    assert found.genotype.tobytes() == candidate.genotype.tobytes()
    assert found.recipe == candidate.recipe  # the names too
    assert json.loads(str(row["pending"])) == [0, 1]


def test_changed_recipe_is_refused() -> None:
    row = proposal_row(example_candidate(3), [], "now") | {"recipe_id": "0" * 64}
    with pytest.raises(
        ArchiveError, match=r"recipe of candidate 3 has id \w{12}, recorded was 000"
    ):
        decode_candidate(row, checked=True)


def test_recorded_candidate_reads_its_recipe_once_and_can_be_replaced() -> None:
    original = example_candidate(3)
    found = decode_candidate(proposal_row(original, [], "now"))
    assert (found.origin, found.is_baseline) == (original.origin, original.is_baseline)

    assert found.recipe is found.recipe
    other = dataclasses.replace(found, index=5)
    assert (other.index, other.recipe, other.origin) == (5, original.recipe, original.origin)
    with pytest.raises(AttributeError, match="recipes"):
        assert found.recipes


def test_job_survives_with_its_order() -> None:
    job = json_to_job(job_to_json(example_job()))
    assert job == example_job()
    assert list(job.models.checkpoints) == list(example_job().models.checkpoints)
    assert list(job.objectives) == list(example_job().objectives)


@pytest.mark.parametrize("has_base", [True, False])
def test_sources_survive(has_base) -> None:
    sources = example_sources()
    if not has_base:
        sources = dataclasses.replace(sources, base=None)
    assert json_to_sources(sources_to_json(sources)) == sources
