"""Write your own estimator with this package's core: the return-to-go, normalised at each turn and bounded.

The bound keeps one lucky rollout from outweighing its whole group. verl registers the estimator when it loads the
module:

    export PYTHONPATH=$PWD/examples/extend VERL_USE_EXTERNAL_MODULES=own_estimator
    mtgrpo train -- algorithm.adv_estimator=bounded_returns '~algorithm.turn' +algorithm.turn.bound=1.5 ...

(``~algorithm.turn`` removes the preset's knobs, which belong to another estimator.) All arguments of the decorator are
optional; `mtgrpo report` and the checks before a run use them.
"""

from torch import Tensor

from verl_mtgrpo.credit import normalize_within_group, read_batch, register_estimator


@register_estimator(
    title="bounded returns",
    words="What was paid from this turn on, normalised over the rollouts that got as far, and bounded.",
    divides_by_group_std=True,
)
def bounded_returns(
    token_level_rewards: Tensor, response_mask: Tensor, index, *, discount: float = 1.0, bound: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute clip(norm(G_{i,k}), ±bound), with norm over the rollouts of the group that have a turn k."""
    batch = read_batch(token_level_rewards, response_mask, index)  # tokens -> turns, checked
    returns_BK = batch.return_to_go(discount)  # G_{i,k} = Σ_{l≥k} γ^{l-k} R_{i,l}
    alive_BK = batch.turns.alive_BK
    normalized_BK = normalize_within_group(returns_BK, alive_BK, batch.groups, scale="std", epsilon=1e-6)
    return batch.advantages(normalized_BK.clamp(-bound, bound))  # turns -> tokens
