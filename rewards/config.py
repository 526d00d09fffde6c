"""What a recipe says about rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NETWORK_BUILT_INS = frozenset({"llm_judge"})
"""Built-in reward functions that open sockets without being named in reward.network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Section `reward`."""

    verifier: str = "exact_number"
    """Decides correct or not: exact_number, math, gsm8k, … (docs/rewards.md). Fills a verdict's status and pass@1."""
    verifier_options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the verifier."""
    functions: dict[str, float] = field(default_factory=lambda: {"correctness": 1.0})
    """Reward function to weight. A built-in's name, path.py:function relative to the recipe, or a name that
    reward.uses explains. Weight 0: logged, and usable as a gate."""
    uses: dict[str, str] = field(default_factory=dict)
    """Names of your own in reward.functions to the function behind each, so that one function can stand there twice:
    {greeting: regex_match, closing: regex_match}."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for a function, by its name in reward.functions: {length: {target: 200}}."""
    gates: dict[str, str] = field(default_factory=dict)
    """Function to gate, both in reward.functions: the function counts 0 in the sum unless the gate gives more than 0.
    A gate that gives None is open. The breakdown keeps each function's own number."""
    network: list[str] = field(default_factory=list)
    """Functions, as reward.functions names them, that may use the network. The environment variable that an option
    api_key_env names is passed on to them. Where one fails twice its group is void. llm_judge needs no entry."""
    scorers: int = 1
    """Scorer actors, each with a killable process for reward code."""
    time_limit_s: float = 5.0
    """CPU seconds that the verifier or one reward function may take for one completion before it is killed: status
    timeout, reward 0. Wall time, at the same end: max(3 x time_limit_s, time_limit_s + 2)."""
    network_time_limit_s: float = 300.0
    """Seconds that one function of reward.network may take for a whole group before the group is void."""
    memory_mib: int = 4096
    """Memory that one call of a verifier or reward function may take beyond the loaded code: over it, status timeout,
    reward 0."""
    health_tasks: int = 8
    """Tasks whose reference answer must pass, and an empty answer fail, before a run starts; 0: no such check."""
    max_consecutive_errors: int = 5
    """Groups in a row in which a reward function raised before the run stops, naming it."""

    def function_of(self, name: str) -> str:
        """The function behind a name of reward.functions: a built-in's name, or path.py:function."""
        return self.uses.get(name, name)

    def uses_network(self, name: str) -> bool:
        """Whether what stands in reward.functions under this name may open sockets."""
        return name in self.network or self.function_of(name) in NETWORK_BUILT_INS
