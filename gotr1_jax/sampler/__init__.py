"""Drawing plans and pictures from a policy, and scoring them again: rows, sampler, replay."""
