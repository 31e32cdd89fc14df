"""The aggregate of scores, as a metric of the library `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from .stats import clustered_mean, mean


class Accuracy(evaluate.Metric):
    """Mean correctness with its standard error; predictions are scores, references cluster keys.

    The error is clustered where references repeat. Never loaded by name: that needs a network.
    """

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True, seed=0)

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value
        return evaluate.MetricInfo(
            description="Mean correctness with a closed-form (clustered) standard error.",
            citation="",
            inputs_description="predictions: scores in [0, 1]; references: cluster keys.",
            features=datasets.Features(
                {"predictions": value("float64"), "references": value("string")}
            ),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[str]) -> dict[str, float]:  # type: ignore[override]
        are_clustered = len(set(references)) < len(references)
        found = clustered_mean(predictions, references) if are_clustered else mean(predictions)
        return {"accuracy": found.value, "accuracy_stderr": found.stderr}
