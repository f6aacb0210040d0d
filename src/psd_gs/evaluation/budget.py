"""What every arm may spend: the same steps, or the same time on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from psd_gs.errors import ConfigError
from psd_gs.evaluation.arms import Arm

Kind = Literal["equal-steps", "equal-time"]
SLOWEST = "slowest"
"""As ``time_of``: the arm with the longest steps."""


@dataclass(frozen=True)
class Budget:
    """Steps per arm, and how they came about.

    Attributes:
        kind: ``equal-steps`` or ``equal-time``.
        steps: of each single run of an arm, by the arm's name.
        time_of: arm whose time all may take (equal time).
        seconds: that time, of the optimization loop alone (equal time).
        seconds_per_step: as measured, by arm (equal time).
        measured_on: machine, prompts and steps of the measurement (equal time).
    """

    kind: Kind
    steps: dict[str, int]
    time_of: str = ""
    seconds: float = 0.0
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    measured_on: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def equal_steps(arms: Sequence[Arm], own: Mapping[str, int]) -> Budget:
    """Each arm the steps that its options say, shared out among its runs.

    Args:
        arms: to be compared.
        own: steps of the preset with the arm's options, by arm.
    """
    return Budget("equal-steps", {arm.name: max(1, own[arm.name] // arm.runs) for arm in arms})


def equal_time(
    arms: Sequence[Arm],
    own: Mapping[str, int],
    seconds_per_step: Mapping[str, float],
    time_of: str,
    measured_on: Mapping[str, Any],
    seconds: float | None = None,
) -> Budget:
    """Each arm as many steps as fit into one time: that of arm ``time_of`` with its own steps.

    Schedules are fractions of the run, so they stretch and shrink with its steps.

    Args:
        arms: to be compared.
        own: steps of the preset with the arm's options, by arm.
        seconds_per_step: by arm.
        time_of: an arm, or :data:`SLOWEST`.
        measured_on: for the record.
        seconds: the time itself, where it was settled before (arms that are added later keep to it).

    Raises:
        ConfigError: no such arm.
    """
    costs = {arm.name: seconds_per_step[arm.name] for arm in arms}
    if time_of == SLOWEST:
        time_of = max(costs, key=lambda name: costs[name] * own[name])
    if seconds is None:
        if time_of not in costs:
            raise ConfigError(f"time of an arm: expected {SLOWEST} or one of {', '.join(costs)}, received {time_of!r}.")
        seconds = costs[time_of] * own[time_of]
    steps = {arm.name: max(1, int(seconds / (costs[arm.name] * arm.runs) + 1e-9)) for arm in arms}
    return Budget("equal-time", steps, time_of, seconds, costs, dict(measured_on))
