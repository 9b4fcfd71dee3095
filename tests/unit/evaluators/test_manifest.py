"""Item names, and manifests as JSON."""

import datetime
import json

import pytest

from configs.evaluation import SplitSizes
from evaluators.manifest import Manifest, item_id, split_items


def manifest() -> Manifest:
    splits = split_items(
        (item_id({"n": n}) for n in range(9)), SplitSizes(search=2, select=3, report=4)
    )
    return Manifest({split: {"t": ids} for split, ids in splits.items()}, {"t": "00ff"})


def test_item_is_named_by_content_not_by_order_of_keys() -> None:
    assert item_id({"a": 1, "b": "é"}) == item_id({"b": "é", "a": 1})
    assert item_id({"a": 1}) != item_id({"a": "1"})
    # The name is part of every archive: it must never change.
    assert item_id({"question": "How many?", "answer": "#### 4"}) == "1857a49315a46e82"


def test_item_may_hold_what_json_lacks() -> None:
    day = {"day": datetime.date(2026, 1, 2), "text": "\ud800"}
    assert len(item_id(day)) == 16


def test_split_items_says_what_is_there_and_what_was_asked() -> None:
    with pytest.raises(ValueError, match=r"has 2 distinct items, .* 1 \+ 1 \+ 1 = 3"):
        split_items(["aa", "bb", "aa"], SplitSizes(search=1, select=1, report=1))


def test_manifest_survives_json() -> None:
    before = manifest()
    after = Manifest.from_json(before.to_json())
    assert after == before
    assert after.tasks == ("t",)
    assert [len(after.items(split)["t"]) for split in ("search", "select", "report")] == [2, 3, 4]


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 2}'])
def test_manifest_refuses_json_of_another_kind(text: str) -> None:
    with pytest.raises(ValueError, match="not a manifest of version 1"):
        Manifest.from_json(text)


def test_manifest_refuses_unknown_split() -> None:
    content = json.loads(manifest().to_json())
    content["splits"]["train"] = {}
    with pytest.raises(ValueError, match="a manifest has no split `train`"):
        Manifest.from_json(json.dumps(content))
