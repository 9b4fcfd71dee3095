"""What a merge method is: the contract of everything in ``workers.methods`` and of plug-ins.

A method says what happens to the elements of one tensor, as a pure function of a :class:`Chunk`
of it; how sources are read, chunks cut, masks drawn and results rounded is not its business. It is
called as it is by the eager path, and traced into one fused pass by ``workers.compiled``.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from configs.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from workers.drops import Drops

DropKind = Literal["none", "random", "trim", "ranked"]
"""What a drop ratio p does to a task vector. ``random``: a hash drops each element with
probability p and the rest is rescaled by 1/(1-p) (DARE). ``trim``: the share p of smallest
magnitudes is dropped (TIES). ``ranked``: smaller magnitudes are dropped with a larger probability,
p on average, and each kept element is rescaled by its own (DELLA)."""


class Chunk(NamedTuple):
    """Some rows of one tensor, in all checkpoints that contribute to a merge.

    Attributes:
        base: ``(r, w)`` float32; None for methods without a base.
        tuned: c tensors ``(r, w)``, float32, bfloat16 or float16.
        weights: ``(c,)`` float32, the recipe's weights.
        scales: ``(c,)`` float32, the factors of what was kept: w / (1-p) for ``random`` drops,
            what ``MergeMethod.coefficients`` says where there is one, else the weights.
        options: Values of the method's options; constants of the compiled pass.
        drops: What is dropped; None keeps everything.
        words: What ``drops`` computes once for all checkpoints.
        columns: c tensors ``(w,)`` or ``(r, w)`` float32 that belong to the columns of the chunk,
            for methods that take them; empty for the others.
    """

    base: "Tensor | None"
    tuned: "Sequence[Tensor]"
    weights: "Tensor"
    scales: "Tensor"
    options: Mapping[str, float]
    drops: "Drops | None"
    words: "Tensor | None"
    columns: "Sequence[Tensor]" = ()

    def delta(self, index: int) -> "Tensor":
        """Return the task vector of one checkpoint, ``(r, w)`` float32, with drops applied."""
        assert self.base is not None  # noqa: S101 - checked by the caller; tells the type checker
        delta = self.tuned[index].float() - self.base
        if self.drops is None or self.words is None:
            return delta
        return self.drops.apply(index, delta, self.words)


Combine = Callable[[Chunk], "Tensor"]
"""Returns the merged elements, ``(r, w)`` float32, base included. Plain torch operations on
elements only: no reductions over them, no branches on values, so that it compiles and its result
does not depend on where chunks end. One rounding per operation; the result is rounded after."""

Gram = Sequence[Sequence[float]]
"""Inner products of one tensor between checkpoints, c x c, in float64."""

Coefficients = Callable[[Sequence[float], Gram], Sequence[float]]
"""Turns the weights into factors for one tensor, from the inner products of its checkpoints."""


@dataclass(frozen=True, slots=True)
class Option:
    """A parameter of a method that is part of the recipe and not searched.

    ``low`` and ``high`` are inclusive. A flag takes 0 or 1 (``false``, ``true`` in a job file).
    A count takes whole numbers.
    """

    name: str
    default: float
    low: float
    high: float
    meaning: str
    is_flag: bool = False
    is_count: bool = False

    def problem_with(self, value: float) -> str | None:
        """Say why a value is not allowed, or None."""
        if self.is_flag and value not in (0.0, 1.0):
            return f"must be true or false, found {value}"
        if self.is_count and not float(value).is_integer():
            return f"must be a whole number, found {value}"
        if not self.low <= value <= self.high or not math.isfinite(value):
            return f"must be between {self.low:g} and {self.high:g}, found {value}"
        return None


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A way to merge, registered by name.

    In ``workers.methods``, or by a package as an entry point of ``mergefront.methods``.

    Attributes:
        name: How job files and recipes call it.
        paper: Where it comes from.
        needs_base: It is defined on task vectors, tuned - base.
        combine: What it does to the elements.
        drop: What drop ratios mean to it.
        options: Its parameters beside weights and drop ratios.
        num_checkpoints: How many checkpoints it merges; None is any number.
        coefficients: Factors per tensor that depend on the tensors' inner products.
        takes_columns: It needs numbers per input column, which a recipe's file holds: it is made
            outside of searches, which score it as it is. Such merges are not compiled.
    """

    name: str
    paper: str
    needs_base: bool
    combine: Combine
    drop: DropKind = "none"
    options: tuple[Option, ...] = ()
    num_checkpoints: int | None = None
    coefficients: Coefficients | None = None
    takes_columns: bool = False

    @property
    def uses_drop_ratios(self) -> bool:
        """Whether drop ratios other than 0 mean something."""
        return self.drop != "none"

    def complete_options(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return all options, the defaults for what is not given.

        Raises:
            ConfigError: An option that the method does not have, or a value out of range.
        """
        known = {option.name: option for option in self.options}
        problems = [
            Problem(f"merge.options.{name}", self._unknown(name))
            for name in given
            if name not in known
        ]
        problems += [
            Problem(f"merge.options.{name}", message)
            for name, value in given.items()
            if name in known and (message := known[name].problem_with(float(value)))
        ]
        if problems:
            raise ConfigError(f"method `{self.name}` cannot be used like this", problems)
        return {
            option.name: float(given.get(option.name, option.default)) for option in self.options
        }

    def _unknown(self, name: str) -> str:
        known = [option.name for option in self.options]
        close = difflib.get_close_matches(name, known, n=1)
        if close:
            return f"`{self.name}` has no such option; did you mean `{close[0]}`?"
        found = f"it has {', '.join(known)}" if known else "it has none"
        return f"`{self.name}` has no such option; {found}"
