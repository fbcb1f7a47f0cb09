import torch

from models.inference.speed import fastest, measure


class Clock:
    """Time passes only in calls of runners."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sleeper:
    name, takes_pixels = "sleeper", False

    def __init__(self, clock: Clock, start: float, each: float) -> None:
        self._clock, self._start, self._each, self.calls = clock, start, each, 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        slow = 2 if self.calls % 3 == 0 else 1  # other work on the machine
        self._clock.now += slow * (self._start + self._each * len(batch))
        return batch


def test_speed_is_that_of_the_fastest_call() -> None:
    clock = Clock()
    runners = {"a": Sleeper(clock, 0.01, 0.001), "b": Sleeper(clock, 0.0, 0.002)}
    speeds = measure(runners, torch.zeros(8, 1), (1, 8), seconds=0.1, clock=clock)
    assert {name: {n: round(s) for n, s in by.items()} for name, by in speeds.items()} == {
        "a": {1: 91, 8: 444},
        "b": {1: 500, 8: 500},
    }


def test_every_batch_size_counts_alike() -> None:
    assert fastest({"a": {1: 100.0, 8: 100.0}, "b": {1: 190.0, 8: 60.0}}) == "b"
    assert fastest({"a": {1: 100.0, 8: 100.0}, "b": {1: 190.0, 8: 50.0}}) == "a"
