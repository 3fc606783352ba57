"""Whether generated rows can be expected to help a run: rules with thresholds, provisional until the studies speak.

They generalize a few early runs on HalfCheetah, of one to three seeds, made before the gate and the row layout: at one
update per step even perfect rows gained nothing; at ten, rows helped a learner with 10,000 offline rows and learners
that started from nothing; a learner that was below its data after pretraining showed nothing. `configs/study/` has the
studies that will replace them.
"""

from dataclasses import dataclass

MIN_UPDATES_PER_STEP = 5
MAX_OFFLINE_ROWS = 50_000
SHARE = 0.5


@dataclass(frozen=True)
class Circumstances:
    """What is known of a run before it starts; `data_return` is the mean return of the dataset's episodes, if any."""

    offline_rows: int
    updates_per_step: float
    num_critics: int
    layer_norm: bool
    data_return: float | None

    @property
    def critics(self) -> str:
        """The critics, in words."""
        return f"{self.num_critics} {'normalized' if self.layer_norm else 'plain'} critics"


@dataclass(frozen=True)
class Decision:
    """The share of generated rows in a batch (0: none) and the reason for it."""

    share: float
    reason: str

    def __str__(self) -> str:
        return f"{f'{self.share:.0%} generated rows' if self.share else 'no generated rows'}: {self.reason}"


def decide(known: Circumstances) -> Decision:
    """The decision before a run."""
    rows = f"{known.offline_rows:,} offline rows" if known.offline_rows else "no offline rows"
    if known.updates_per_step < MIN_UPDATES_PER_STEP:
        reason = f"at {known.updates_per_step:g} updates per step ({known.critics}) real rows are not used up yet"
        return Decision(0.0, f"{reason}; expected to help from {MIN_UPDATES_PER_STEP} on")
    if known.offline_rows > MAX_OFFLINE_ROWS:
        return Decision(0.0, f"{rows} are many; expected to help up to {MAX_OFFLINE_ROWS:,}")
    return Decision(SHARE, f"{rows}, {known.updates_per_step:g} updates per step and {known.critics}")


def reconsider(decision: Decision, known: Circumstances, policy_return: float) -> Decision:
    """The decision once the pretrained policy is evaluated."""
    if not decision.share or known.data_return is None or policy_return >= known.data_return:
        return decision
    below = f"the pretrained policy (return {policy_return:,.0f}) is below its data ({known.data_return:,.0f})"
    return Decision(0.0, f"{below}: first the learner has to learn these")
