"""`gotr1 train grpo`. `train` is the loop; `rollout` samples and scores; `advantages`, `kl`,
`losses` and `entropy` are the formulas; `update` compiles them; `setup` loads what a run needs."""
