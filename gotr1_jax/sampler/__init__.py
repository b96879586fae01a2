"""Drawing plans and images from a policy, and scoring them again: rows, sampler, replay."""
