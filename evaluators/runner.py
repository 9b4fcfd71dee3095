"""Runs frozen requests through a live model: generation by a backend, likelihoods by passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from evaluators.batches import BatchLimits, limits_for
from evaluators.loglikelihood import Likelihood, loglikelihoods

if TYPE_CHECKING:
    from configs.evaluation import BackendName, EvaluationSettings
    from evaluators.backend import GenerationBackend
    from evaluators.evaluator import LiveModel
    from evaluators.harness_requests import FrozenRequest

OnUnit = Callable[[int, tuple[object, ...]], None]
"""Called with the index of a unit and its responses, one per request."""


def make_backend(
    name: BackendName, live: LiveModel, settings: EvaluationSettings
) -> GenerationBackend:
    """Make the generation backend of a job; see ``evaluation.backend``."""
    if name == "continuous":
        from evaluators.continuous import ContinuousBatches

        return ContinuousBatches(live, batch_size=settings.batch_size)
    from evaluators.generation import StaticBatches

    return StaticBatches(live, batch_size=settings.batch_size)


class ItemRunner:
    """Runs requests through one live model, and remembers how much fits into its memory.

    Args:
        live: The model, in evaluation mode, and its tokenizer.
        settings: The job's evaluation settings.
        max_length: Most tokens that the model sees at once.
    """

    def __init__(self, live: LiveModel, settings: EvaluationSettings, max_length: int) -> None:
        self._model = live.model
        self._settings = settings
        self._max_length = max_length
        self._backend = make_backend(settings.backend, live, settings)
        self._limits: BatchLimits | None = None

    def serves(self, live: LiveModel) -> bool:
        """Whether this runs a live model as it is now; its weights may have changed."""
        return live.model is self._model

    def run(self, units: Sequence[Sequence[FrozenRequest]], on_unit: OnUnit) -> None:
        """Run requests through the model as it is now.

        Args:
            units: What belongs together, each with requests of one kind.
            on_unit: Called once for every unit, generation first, each as soon as it is known.

        Raises:
            EvaluationError: A logit is not finite.
        """
        self._backend.weights_changed()
        prompts = [
            (index, request.prompt)
            for index, unit in enumerate(units)
            for request in unit
            if request.prompt is not None
        ]
        owners = [index for index, _ in prompts]
        self._backend.generate(
            [prompt for _, prompt in prompts],
            lambda position, text: on_unit(owners[position], (text,)),
        )
        generated = set(owners)
        scored = [(index, unit) for index, unit in enumerate(units) if index not in generated]
        if scored:
            self._run_likelihoods(scored, on_unit)

    def close(self) -> None:
        """Release what the backend holds."""
        self._backend.close()

    def _run_likelihoods(
        self, units: Sequence[tuple[int, Sequence[FrozenRequest]]], on_unit: OnUnit
    ) -> None:
        size = self._settings.batch_size
        if self._limits is None:
            self._limits = limits_for(self._model, size)
        windows = [window for _, unit in units for request in unit for window in request.windows]
        found = iter(
            loglikelihoods(
                self._model,
                windows,
                batch_size=size,
                max_length=self._max_length,
                limits=self._limits,
            )
        )
        for index, unit in units:
            responses = tuple(
                _response(request, [next(found) for _ in request.windows]) for request in unit
            )
            on_unit(index, responses)


def _response(request: FrozenRequest, parts: Sequence[Likelihood]) -> object:
    """Say the likelihoods of one request as lm-eval expects them."""
    total = sum(part.log_probability for part in parts)
    if request.instance.request_type == "loglikelihood_rolling":
        return total
    return (total, parts[0].is_greedy)
