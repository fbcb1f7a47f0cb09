"""Lower limits of metrics, such as `recall@1=0.9`, that an evaluation must reach (for CI)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.errors import InputError


@dataclass(frozen=True)
class MetricFloor:
    """A metric and its lower limit."""

    metric: str
    least: float

    def failure(self, metrics: Mapping[str, float]) -> str | None:
        """The message if the metric is below the limit, else None.

        Raises:
            InputError: the metric was not measured.
        """
        if self.metric not in metrics:
            raise InputError(f"--fail-under {self.metric}: not measured; choose among {', '.join(metrics)}")
        value = metrics[self.metric]
        return None if value >= self.least else f"{self.metric} is {value:.4f}, under {self.least:g}"


def parse_floors(texts: Sequence[str]) -> list[MetricFloor]:
    """Parse conditions such as `recall@1=0.9`.

    Raises:
        InputError: there is no number after the last "=".
    """
    floors = []
    for text in texts:
        metric, _, least = text.rpartition("=")
        try:
            floors.append(MetricFloor(metric.strip(), float(least)))
        except ValueError as error:
            raise InputError(f"--fail-under {text}: write it as recall@1=0.9") from error
    return floors
