"""Whether two checkpoints read text alike: their tokenizers, compared by content."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from configs.errors import CorruptCheckpointError

# Where a tokenizer's content may be, best first; the first layout that both have is compared.
_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)


class TokenizerMatch(NamedTuple):
    """What came of a comparison.

    ``difference`` says how the two disagree on tokens, ids or merges, or is None.
    ``warning`` says what could not be compared or may not matter, or is None.
    """

    difference: str | None = None
    warning: str | None = None


def match_tokenizers(
    reference: Path, other: Path, *, shared_below: int | None = None
) -> TokenizerMatch:
    """Compare the tokenizers of two checkpoint directories.

    Token ids must agree, since a merge averages the rows of the embeddings; so must the merges
    or scores that pick the tokens. How a file spells them does not matter, nor which tokens
    are marked as special, nor chat templates.

    Args:
        reference: Directory of one checkpoint.
        other: Directory of the other.
        shared_below: Compare only what both have, of the tokens with smaller ids; None wants
            the same tokens.

    Raises:
        CorruptCheckpointError: A tokenizer file cannot be read.
    """
    here, there = _layouts_in(reference), _layouts_in(other)
    if not there:
        return TokenizerMatch(warning="has no tokenizer; it is taken to read text like the others")
    if not here:
        return TokenizerMatch(warning=f"{reference} has no tokenizer to compare with")
    common = next((layout for layout in here if layout in there), None)
    if common is None:
        return TokenizerMatch(
            warning=f"its tokenizer ({there[0][0]}) cannot be compared with {here[0][0]}; "
            "check that they are the same"
        )
    if shared_below is not None:
        contents = [_Content.of(path) for path in (reference, other)]
        if contents[0] is not None and contents[1] is not None:
            return _match_shared(contents[0], contents[1], shared_below)
    if common == ("tokenizer.json",):
        return _match_content(_Content.read(reference), _Content.read(other))
    same = all((reference / f).read_bytes() == (other / f).read_bytes() for f in common)
    return TokenizerMatch(
        _added_conflict(reference, other) if same else f"{' and '.join(common)} differ"
    )


def token_ids(directory: Path) -> dict[str, int] | None:
    """Return token -> id of a checkpoint's tokenizer; None where it has none that is text.

    Raises:
        CorruptCheckpointError: The file cannot be read.
    """
    content = _Content.of(directory)
    return None if content is None else content.ids


def _lines_of(path: Path) -> list[str]:
    # Not splitlines: some tokens are characters that it takes for the end of a line.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def conflicts_among(vocabularies: Mapping[str, Mapping[str, int]], below: int) -> dict[str, str]:
    """Find models whose tokens contradict those of the models before them.

    Args:
        vocabularies: Model -> token -> id.
        below: Ids from here on do not count.

    Returns:
        Model -> its first contradiction, in words.
    """
    id_of: dict[str, tuple[int, str]] = {}
    token_of: dict[int, tuple[str, str]] = {}
    found: dict[str, str] = {}
    for model, ids in vocabularies.items():
        for token, index in sorted(ids.items(), key=lambda item: item[1]):
            known_id, first = id_of.setdefault(token, (index, model))
            known_token, second = token_of.setdefault(index, (token, model))
            if known_id != index and first != model and min(known_id, index) < below:
                text = f"{token!r} has id {index} here and {known_id} in `{first}`"
            elif known_token != token and second != model and index < below:
                text = f"id {index} is {token!r} here and {known_token!r} in `{second}`"
            else:
                continue
            found.setdefault(model, text)
    return found


def _conflict(here: Mapping[str, int], there: Mapping[str, int], below: int) -> str | None:
    found = conflicts_among({"reference": here, "other": there}, below).get("other")
    return None if found is None else found.replace("in `reference`", "in the reference")


def _added_conflict(reference: Path, other: Path) -> str | None:
    """Say how tokens that were added beside a vocabulary contradict each other, or None."""
    return _conflict(_added_tokens(reference), _added_tokens(other), sys.maxsize)


def _added_tokens(directory: Path) -> dict[str, int]:
    """Return token -> id of what stands in files of its own, or in the tokenizer's config."""
    found: dict[str, int] = {}
    path = directory / "tokenizer_config.json"
    try:
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            decoder = settings.get("added_tokens_decoder") or {}
            found |= {token["content"]: int(index) for index, token in decoder.items()}
        path = directory / "added_tokens.json"
        if path.is_file():
            found |= json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(
            f"{path}: its added tokens are not readable ({error!r}); copy it again", path=str(path)
        ) from error
    return found


def has_tokenizer(directory: Path) -> bool:
    """Say whether a directory holds a tokenizer."""
    return bool(_layouts_in(directory))


def _layouts_in(directory: Path) -> list[tuple[str, ...]]:
    return [layout for layout in _LAYOUTS if all((directory / f).is_file() for f in layout)]


class _Content(NamedTuple):
    """What decides token ids: token -> id, merges in order, token -> score, and the rest."""

    ids: dict[str, int]
    merges: list[tuple[str, ...]]
    scores: dict[str, float]
    pipeline: dict[str, object]

    @classmethod
    def of(cls, directory: Path) -> "_Content | None":
        """Read the tokenizer of a checkpoint; None where it has none that is text."""
        if (directory / "tokenizer.json").is_file():
            return cls.read(directory)
        try:
            if (directory / "vocab.txt").is_file():
                lines = _lines_of(directory / "vocab.txt")
                return cls({token: index for index, token in enumerate(lines)}, [], {}, {})
            if not (directory / "vocab.json").is_file():
                return None
            ids = dict(json.loads((directory / "vocab.json").read_text(encoding="utf-8")))
            if (added := directory / "added_tokens.json").is_file():
                ids |= json.loads(added.read_text(encoding="utf-8"))
            merges: list[tuple[str, ...]] = []
            if (path := directory / "merges.txt").is_file():
                lines = _lines_of(path)
                merges = [
                    tuple(line.split(" ")) for line in lines if not line.startswith("#version")
                ]
        except (OSError, ValueError, TypeError) as error:
            raise CorruptCheckpointError(
                f"{directory}: its vocabulary is not readable ({error}); copy it again",
                path=str(directory),
            ) from error
        return cls(ids, merges, {}, {})

    @classmethod
    def read(cls, directory: Path) -> "_Content":
        """Parse ``tokenizer.json``."""
        path = directory / "tokenizer.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            model = content["model"]
            vocab = model.get("vocab", {})
            scores = {} if isinstance(vocab, Mapping) else dict(vocab)
            ids = (
                dict(vocab)
                if isinstance(vocab, Mapping)
                else {piece: index for index, (piece, _) in enumerate(vocab)}
            )
            # Some files list an added token in the vocabulary too; the union is what counts.
            ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or []}
            merges = [
                tuple(merge.split(" ") if isinstance(merge, str) else merge)
                for merge in model.get("merges") or []
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpointError(
                f"{path}: not readable as a tokenizer ({error!r}); copy it again", path=str(path)
            ) from error
        steps = ("normalizer", "pre_tokenizer", "post_processor")
        return cls(ids, merges, scores, {step: content.get(step) for step in steps})


def _match_shared(here: _Content, there: _Content, below: int) -> TokenizerMatch:
    """Compare what two vocabularies share; one of them may go on where the other ends."""
    if found := _conflict(here.ids, there.ids, below):
        return TokenizerMatch(found)
    common = min(len(here.merges), len(there.merges))
    if here.merges[:common] != there.merges[:common]:
        return TokenizerMatch("the merges that both have differ")
    shared = here.scores.keys() & there.scores.keys()
    if any(here.scores[token] != there.scores[token] for token in shared):
        return TokenizerMatch("the same tokens have other scores")
    return TokenizerMatch()


def _match_content(here: _Content, there: _Content) -> TokenizerMatch:
    if here.ids != there.ids:
        tokens = sorted(here.ids.keys() | there.ids.keys())
        differing = [t for t in tokens if here.ids.get(t) != there.ids.get(t)]
        token = differing[0]
        return TokenizerMatch(
            f"{len(differing)} of {len(tokens)} tokens differ, e.g. {token!r} has id "
            f"{there.ids.get(token, 'none')}, expected {here.ids.get(token, 'none')}"
        )
    if here.merges != there.merges:
        return TokenizerMatch(f"merges differ ({len(here.merges)} and {len(there.merges)} of them)")
    if here.scores != there.scores:
        return TokenizerMatch("the same tokens have other scores")
    if here.pipeline != there.pipeline:
        steps = [step for step in here.pipeline if here.pipeline[step] != there.pipeline[step]]
        return TokenizerMatch(
            warning=f"its tokenizer has the same tokens but another {' and '.join(steps)}"
        )
    return TokenizerMatch()
