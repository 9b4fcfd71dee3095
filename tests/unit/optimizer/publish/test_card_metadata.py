"""What the hub reads of an exported merge, read with the hub's own classes."""

import json

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard

from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.publish.card_metadata import card_metadata
from optimizer.publish.source_cards import (
    CONFLICT_NAME,
    Licence,
    SourceCard,
    licence_of,
    read_source_card,
)
from tests.unit.optimizer.publish.test_model_card import card_of
from tests.unit.optimizer.synthetic_archive import Merge, build

MERGES = (
    Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
    Merge((0.7, 0.6, 0.0), (0.9,) * 3, select=(0.8,) * 3, report=(0.75, 0.7, 0.65)),
    Merge((0.1, 0.2, 0.9), (0.2, 0.2, 1.0), select=(0.2, 0.2, 1.0)),
)


@pytest.fixture
def pool(tmp_path):
    """Directories of a base and three checkpoints, each with a card where one is given."""

    def make(**cards: str) -> dict[str, object]:
        paths = {}
        for name in ("base", "instruct", "code", "math"):
            paths[name] = tmp_path / "models" / name
            paths[name].mkdir(parents=True, exist_ok=True)
            config = {"architectures": ["LlamaForCausalLM"]}
            (paths[name] / "config.json").write_text(json.dumps(config))
            if name in cards:
                (paths[name] / "README.md").write_text(f"---\n{cards[name]}\n---\n# {name}\n")
        base = str(paths.pop("base"))
        return {"base": base, "checkpoints": {name: str(p) for name, p in paths.items()}}

    return make


@pytest.fixture
def write_card(tmp_path):
    def write(models: dict[str, object], title: str = "merged", **wish: object) -> str:
        path = tmp_path / "a.sqlite"
        path.unlink(missing_ok=True)
        build(path, MERGES, chosen=1, models=models, name="x `|` <b>")
        with Archive.open(path) as archive:
            return card_of(archive, title, **wish)

    return write


def test_hub_reads_parents_tags_data_sets_and_licence(pool, write_card):
    cards = {
        "base": "license: apache-2.0\ndatasets: [org/web]",
        "instruct": "license: apache-2.0\ndatasets: [org/chat, org/web]",
        "code": "license: Apache-2.0\ndatasets: org/code",
        # It has no weight in the merge: what its card says does not matter.
        "math": "license: cc-by-nc-4.0\ndatasets: org/secret",
    }
    models = pool(**cards)
    data = ModelCard(write_card(models)).data
    assert data.tags == ["merge", "mergefront"]
    assert data.library_name == "transformers"
    assert data.license == "apache-2.0"
    assert data.datasets == ["org/web", "org/chat", "org/code"]
    assert data.base_model is None
    hub = {
        "base": "org/base",
        "checkpoints": {"instruct": "org/a", "code": "org/b@v1", "math": "c"},
    }
    data = ModelCard(write_card(hub)).data
    assert data.base_model == ["org/base", "org/a", "org/b"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert data.license is None
    # What the hub does not know is no parent there: a bucket, a directory that is gone.
    hub["checkpoints"] |= {"instruct": "s3://bucket/a", "code": "../b"}
    assert ModelCard(write_card(hub)).data.base_model == ["org/base"]


def test_hub_reads_report_scores_as_results(pool, write_card):
    card = ModelCard(write_card(pool(), title="our-merge"))
    results = card.data.eval_results
    assert card.data.model_name == "our-merge"
    assert all(isinstance(result, EvalResult) for result in results)
    values = {result.dataset_type: result.metric_value for result in results}
    assert values == {"zoo_instruct": 0.75, "zoo_code": 0.7, "zoo_math": 0.65}
    assert {result.dataset_split for result in results} == {"report"}
    assert {result.metric_args["items"] for result in results} == {20}
    assert results[0].metric_args["stderr"] == pytest.approx(0.099, abs=1e-3)
    assert "20 items that mergefront held out" in results[0].dataset_name
    # Never the search's own scores: those flatter.
    assert "0.9" not in [str(result.metric_value) for result in results]


def test_merge_without_report_scores_claims_no_results(pool, write_card):
    data = ModelCard(write_card(pool(), prefer={"math": 1.0})).data
    assert data.eval_results is None
    assert "model-index" not in data.to_yaml()


def test_pipeline_is_that_of_models_that_continue_texts():
    cards = [SourceCard("base", pipeline_tag="fill-mask")]
    made = [
        card_metadata(
            model_name="m", parents=[], cards=cards, licence=Licence({}), is_causal=is_causal
        )
        for is_causal in (True, False)
    ]
    assert "pipeline_tag: text-generation" in made[0]
    assert "pipeline_tag: fill-mask" in made[1]


def test_turned_scores_do_not_pass_for_the_metric():
    scores = {"wiki": TaskScores("wiki", ("a", "b"), np.array([-2.0, -3.0]))}
    result = _published(_job(), scores)
    assert result.metric_type == "mergefront_word_perplexity"
    assert result.metric_value == -2.5
    assert "as mergefront scores it: higher is better" in result.metric_name
    assert result.metric_args["filter"] == "none"


def test_scorer_is_published_as_it_is_beyond_one_too():
    scores = {"bleu": TaskScores("bleu", ("a", "b"), np.array([31.0, 40.0]))}
    spec = {"scorer": "scores:bleu", "items": "items.jsonl"}
    result = _published(_job(spec), scores)
    assert (result.metric_type, result.metric_value) == ("scores:bleu", 35.5)
    assert result.metric_name == "scores:bleu, mean of 2 held-out items"


def _published(job, scores):
    text = card_metadata(
        model_name="m",
        parents=[],
        cards=[],
        licence=Licence({}),
        is_causal=True,
        job=job,
        results=scores,
    )
    (result,) = ModelCard(f"---\n{text}\n---\n").data.eval_results
    return result


def _job(spec=None):
    from configs.schema import JobConfig

    spec = spec or {"task": "wiki", "metric": "word_perplexity,none", "num_fewshot": 2}
    return JobConfig.model_validate(
        {"models": {"checkpoints": {"a": "a"}}, "objectives": {"o": [spec]}, "archive": "a"}
    )


def test_different_licences_are_a_warning(pool, write_card):
    text = write_card(pool(base="license: apache-2.0", instruct="license: llama3.1"))
    data = ModelCard(text).data
    assert (data.license, data.license_name) == ("other", CONFLICT_NAME)
    assert "**Licence: The merged models have different licences" in text
    assert "base: apache-2.0; instruct: llama3.1" in text
    assert "No licence is named by code." in text


@pytest.mark.parametrize(
    ("cards", "fields", "warning"),
    [
        ([{}, {}], {}, "No card of the merged models names a licence"),
        ([{"license": "mit"}, {}], {}, "m1 none: no licence is claimed"),
        ([{"license": "mit"}, {"license": "MIT"}], {"license": "mit"}, ""),
        (
            [{"license": "other", "license_name": n} for n in ("a", "b")],
            {"license": "other", "license_name": CONFLICT_NAME},
            "m0: other (a); m1: other (b)",
        ),
        (
            [{"license": "other", "license_name": "a", "license_link": link} for link in "xy"],
            {"license": "other", "license_name": "a", "license_link": "x"},
            "",
        ),
        ([{"license": "other"}, {"license": "other"}], {}, "No card of the merged models names"),
        ([{"license": "other"}, {"license": "mit"}], {}, "m0 none: no licence is claimed"),
        (
            [{"license": "other", "license_link": f"https://x/{n}"} for n in "ab"],
            {"license": "other", "license_name": CONFLICT_NAME},
            "m0: other (https://x/a); m1: other (https://x/b)",
        ),
    ],
)
def test_licence_is_carried_over_only_where_all_agree(cards, fields, warning):
    found = licence_of([SourceCard(f"m{n}", licence=card) for n, card in enumerate(cards)])
    assert found.fields == fields
    assert warning in found.warning
    assert bool(found.warning) == bool(warning)


@pytest.mark.slow
@pytest.mark.parametrize(
    "card",
    [
        "license: [", "- just\n- a list", "license: {a: b}\ndatasets: {c: d}", "license: 3",
        'license: "' + "x" * 500 + '"', 'license: "a\\u0000b"', "license: null",
        "!!python/object:a",
        "a: &a [x]\nb: &b [*a, *a]\nlicense: [*b, *b]", "[" * 5000,
    ],
)  # fmt: skip
def test_card_that_cannot_be_read_says_nothing(tmp_path, card):
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    assert read_source_card("m", [tmp_path / "none", tmp_path]) == SourceCard("m")


def test_link_into_the_files_of_a_model_is_not_carried_over(tmp_path):
    card = "---\nlicense: other\nlicense_name: own\nlicense_link: {}\n---\n"
    (tmp_path / "README.md").write_text(card.format("LICENSE"))
    own = {"license": "other", "license_name": "own"}
    assert read_source_card("m", [tmp_path]).licence == own
    (tmp_path / "README.md").write_text(card.format("https://x/LICENSE"))
    assert read_source_card("m", [tmp_path]).licence == own | {"license_link": "https://x/LICENSE"}


def test_card_is_read_where_the_job_found_the_model(tmp_path):
    (tmp_path / "README.md").write_text("\ufeff---\r\nlicense: mit\r\n---\r\ntext")
    assert read_source_card("m", [tmp_path]).licence == {"license": "mit"}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe no metadata ---")
    assert read_source_card("m", [tmp_path]) == SourceCard("m")


def test_names_of_people_do_not_break_the_card(pool, write_card):
    text = write_card(pool(), title="a `b` $(touch x)")
    assert "`` x `|` <b> ``" in text.replace("\\|", "|")
    assert "--out 'a `b` $(touch x)'" in text
    assert ModelCard(text).data.model_name == "a `b` $(touch x)"
