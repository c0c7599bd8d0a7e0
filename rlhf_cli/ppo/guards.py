"""What goes wrong in PPO while its reward looks well, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from rlhf_cli.errors import GuardStop
from rlhf_cli.ppo.config import PPOConfig
from rlhf_cli.run_dir import RunDir
from rlhf_cli.terminal import say_error

Metrics = Mapping[str, float]
PATIENCE = 3
"""Rollouts in a row that a fault lasts before it is told."""


@dataclass(frozen=True)
class Watched:
    """One thing that is watched, rollout by rollout."""

    fault: Callable[[Metrics, Metrics], str | None]
    """Of the metrics now and those of the first rollout: what is wrong, or None."""
    hint: str
    after: int = 0
    """Rollouts at the beginning that are not looked at."""


def _when(
    name: str, is_wrong: Callable[[float, float], bool], what: str
) -> Callable[[Metrics, Metrics], str | None]:  # fmt: skip
    """A fault of one metric, by its value now and in the first rollout; a rollout that has not got it has no fault."""

    def look(now: Metrics, first: Metrics) -> str | None:
        if name not in now:
            return None
        value, before = now[name], first.get(name, now[name])
        return what.format(value, before) if is_wrong(value, before) else None

    return look


def _eos(now: Metrics, first: Metrics) -> str | None:
    ends, ended = 1 - now["completions/clipped_ratio"], 1 - first["completions/clipped_ratio"]
    return f"{ends:.0%} of the responses end, {ended:.0%} did at first" if ends < 0.5 * ended else None


WATCHED: dict[str, Watched] = {
    "ratio": Watched(
        _when("val/ratio_var", lambda now, _: now > 1.0, "the ratio to the policy that sampled varies by {:.2g}"),
        "lower `learning_rate` or `num_ppo_epochs`, or set `target_kl`",
    ),
    "clip_fraction": Watched(
        _when(
            "policy/clipfrac_avg",
            lambda now, _: now > 0.5,
            "{:.0%} of the tokens are clipped, so most of an update is thrown away",
        ),
        "lower `learning_rate` or `num_ppo_epochs`",
    ),
    "entropy": Watched(
        _when(
            "objective/entropy_per_token",
            lambda now, first: now < 0.1 * first,
            "entropy has collapsed to {:.2g} nats a token, from {:.2g}",
        ),
        "raise `kl_coef`, lower `learning_rate`, or set `entropy_coef`",
    ),
    "eos": Watched(_eos, "set `missing_eos_penalty`, or raise `response_length`"),
    "length": Watched(
        _when(
            "completions/mean_length",
            lambda now, first: now > 2.0 * first,
            "responses have grown to {:.0f} tokens, from {:.0f}",
        ),
        "see whether the reward likes length for its own sake: `rlhf eval` tells of a reward model",
    ),
    "repetition": Watched(
        _when("completions/repetition", lambda now, _: now > 0.5, "{:.0%} of each response repeats itself"),
        "raise `kl_coef`: the reward is being gamed",
    ),
    "value": Watched(
        _when(
            "val/explained_var",
            lambda now, _: now < 0.0,
            "the value explains {:.2f} of the returns' variance, which is worse than none",
        ),
        "set `value_warmup_rollouts` or `value_learning_rate`, or widen `cliprange_value`",
        after=10,  # a new head begins with nothing
    ),
}
"""By the names that `guards` of a recipe gives them."""


class PPOGuards(TrainerCallback):
    """Stops at the KL budget, and stops or warns at what else goes wrong for several rollouts in a row."""

    def __init__(self, run: RunDir, config: PPOConfig, reactions: Mapping[str, str] | None = None) -> None:
        self._run = run
        self._budget = config.stop_at_kl
        self.reactions = dict(reactions or {})
        """By name `stop`, `warn` (the default) or `off`."""
        self._first: Metrics | None = None
        self._lasting: dict[str, int] = {}
        self._warned: set[str] = set()
        self._seen = 0

    @property
    def kept(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"first": self._first, "lasting": self._lasting, "warned": sorted(self._warned), "seen": self._seen}

    @kept.setter
    def kept(self, kept: Mapping[str, Any]) -> None:
        self._first, self._lasting, self._seen = kept["first"], dict(kept["lasting"]), kept["seen"]
        self._warned = set(kept["warned"])

    def on_rollout(
        self, args: PPOConfig, state: TrainerState, control: TrainerControl, *, metrics: Metrics, **_: Any
    ) -> None:
        """Look at a rollout before it is trained on.

        Raises:
            GuardStop: when it is time to stop; every process has the same metrics, so all of them do.
        """
        kl = metrics["objective/kl"]
        if self._budget is not None and kl > self._budget:
            raise GuardStop(
                f"the KL from the reference is {kl:.2f} nats a response, beyond `stop_at_kl: {self._budget:g}`, before "
                f"step {state.global_step + 1}",
                hint=self._advice(state, "raise `kl_coef` or lower `learning_rate` to go further within it"),
            )
        self._seen += 1
        if self._first is None:
            self._first = dict(metrics)
        for name, watched in WATCHED.items():
            self._look(name, watched, metrics, state)

    def _look(self, name: str, watched: Watched, metrics: Metrics, state: TrainerState) -> None:
        reaction = self.reactions.get(name, "warn")
        ignored = reaction == "off" or self._seen <= watched.after
        fault = None if ignored else watched.fault(metrics, self._first or metrics)
        self._lasting[name] = self._lasting.get(name, 0) + 1 if fault else 0
        if fault is None or self._lasting[name] < PATIENCE:
            return
        what = f"step {state.global_step}: {fault}, for {self._lasting[name]} rollouts"
        if reaction == "stop":
            raise GuardStop(f"stopped at {what}", hint=self._advice(state, watched.hint))
        if name not in self._warned and state.is_world_process_zero:
            self._warned.add(name)
            say_error(f"warning: {what}\nhint: {watched.hint}")

    def _advice(self, state: TrainerState, hint: str) -> str:
        complete = self._run.complete_checkpoints()
        best = state.best_model_checkpoint
        if best is None:
            scored = {entry["step"]: entry["eval_reward"] for entry in state.log_history if "eval_reward" in entry}
            kept = {checkpoint: scored.get(int(checkpoint.name.split("-")[1])) for checkpoint in complete}
            known = {checkpoint: reward for checkpoint, reward in kept.items() if reward is not None}
            best = str(max(known, key=lambda each: known[each])) if known else None
        if best is not None:
            return f"{best} is the best checkpoint by held-out reward; {hint}"
        return f"{complete[0]} is the newest checkpoint; {hint}" if complete else hint
