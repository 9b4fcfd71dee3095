"""Texts that small encoders are trained on: stories, three things to tell of them, and pairs.

Start at :func:`classification_item`, :func:`retrieval_item` and :func:`similarity_item`. The words
are those of the zoo's own stories and instructions; every draw is the caller's generator's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from scripts.zoo.instructions import WORDS
from scripts.zoo.stories import GAINS, LOSSES, MAX_CHANGE, MAX_START, NAMES, THINGS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VERBS = (*GAINS, *LOSSES)
MAX_CHANGES = 4
_MAX_SEEN = 3
_COLOURS, _SEEN = WORDS[:8], WORDS[8:]

Item = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Story:
    """Somebody has things, and changes of their number; between them stands what is only seen.

    Attributes:
        name: Who.
        things: What is counted.
        start: How many there are at first.
        changes: Indices of ``VERBS`` with their numbers, in order.
        seen: Sentences that change nothing: after how many changes each stands, and its words.
    """

    name: str
    things: str
    start: int
    changes: tuple[tuple[int, int], ...]
    seen: tuple[tuple[int, str], ...] = ()

    @property
    def text(self) -> str:
        """The story in words."""
        sentences = [f"{self.name} has {self.start} {self.things}."]
        for index in range(len(self.changes) + 1):
            if index:
                verb, number = self.changes[index - 1]
                sentences.append(f"{self.name} {VERBS[verb].format(n=number)}.")
            sentences += [f"{self.name} sees the {w}." for after, w in self.seen if after == index]
        return " ".join(sentences)


def draw_story(rng: random.Random) -> Story:
    """Draw one story; its length says nothing of the number of its changes."""
    changes = tuple(_draw_change(rng) for _ in range(rng.randint(1, MAX_CHANGES)))
    seen = tuple(
        (rng.randint(0, len(changes)), f"{rng.choice(_COLOURS)} {rng.choice(_SEEN)}")
        for _ in range(rng.randint(0, _MAX_SEEN))
    )
    return Story(rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, MAX_START), changes, seen)


def _draw_change(rng: random.Random) -> tuple[int, int]:
    return rng.randrange(len(VERBS)), rng.randint(2, MAX_CHANGE)


def _operation(rng: random.Random) -> Item:
    story = draw_story(rng)
    return {"text": story.text, "label": int(story.changes[-1][0] < len(GAINS))}


def _steps(rng: random.Random) -> Item:
    story = draw_story(rng)
    return {"text": story.text, "label": len(story.changes) - 1}


def _sight(rng: random.Random) -> Item:
    is_first = rng.random() < 0.5
    while True:
        story = draw_story(rng)
        # Something is seen in all of them, so that only its place tells.
        if story.seen and is_first == any(after == 0 for after, _ in story.seen):
            return {"text": story.text, "label": int(is_first)}


TASKS: Mapping[str, tuple[Callable[[random.Random], Item], int]] = {
    "operation": (_operation, 2),
    "steps": (_steps, MAX_CHANGES),
    "sight": (_sight, 2),
}
"""Task -> what draws an item, and the number of labels: whether the last change is a gain, how many
changes there are, whether anything is seen before the first of them."""


def classification_item(task: str, rng: random.Random) -> Item:
    """Draw ``text`` and ``label`` (from 0) of one of ``TASKS``."""
    return TASKS[task][0](rng)


def retrieval_item(rng: random.Random) -> Item:
    """Draw a ``query`` and the ``passage`` that answers it.

    The ``key`` is all that the query names: who has what and sees what. No other passage of a
    corpus may have it; what changes and by how much is not asked.
    """
    story = draw_story(rng)
    while not story.seen:
        story = draw_story(rng)
    sight = rng.choice(story.seen)[1]
    key = f"{story.name} {sight} {story.things}"
    query = f"Who has {story.things} and sees the {sight}? {story.name}."
    return {"query": query, "passage": story.text, "key": key}


def similarity_item(rng: random.Random) -> Item:
    """Draw two stories ``a`` and ``b`` and their ``score`` in [0, 1]: how alike their changes are.

    Who has how many of what is drawn anew, so it does not tell; see :func:`likeness`.
    """
    first = draw_story(rng)
    keep = rng.random()
    changes = tuple(
        change if rng.random() < keep else _draw_change(rng) for change in first.changes
    )
    extra = tuple(_draw_change(rng) for _ in range(rng.randint(0, MAX_CHANGES - len(changes))))
    order = [*changes, *(extra if rng.random() > keep else ())]
    rng.shuffle(order)
    second = replace(draw_story(rng), changes=tuple(order), seen=())
    return {"a": first.text, "b": second.text, "score": likeness(first, second)}


def likeness(first: Story, second: Story) -> float:
    """Return the size of the common part of two multisets of verbs over that of the larger one."""
    verbs = [Counter(verb for verb, _ in story.changes) for story in (first, second)]
    common = (verbs[0] & verbs[1]).total()
    return common / max(verbs[0].total(), verbs[1].total())


def plain_text(rng: random.Random) -> str:
    """Draw a text for masked words: a story, or a query with what answers it."""
    if rng.random() < 0.2:
        item = retrieval_item(rng)
        return f"{item['query']} {item['passage']}"
    return draw_story(rng).text


def vocabulary() -> list[str]:
    """Return every token of these texts, the special ones first."""
    texts = " ".join((*VERBS, *NAMES, *THINGS, *WORDS, "has and sees the who")).lower()
    words = dict.fromkeys(texts.replace("{n}", "").split())
    numbers = map(str, range(max(MAX_START, MAX_CHANGE) + 1))
    return [*SPECIAL, ".", "?", *words, *numbers]


def draw_distinct(
    draw: Callable[[random.Random], Item],
    count: int,
    rng: random.Random,
    *,
    by: str,
    but: frozenset[object] = frozenset(),
) -> list[Item]:
    """Draw items that differ in one entry, from each other and from others that are named."""
    found: dict[object, Item] = {}
    while len(found) < count:
        item = draw(rng)
        if item[by] not in but:
            found.setdefault(item[by], item)
    return list(found.values())
