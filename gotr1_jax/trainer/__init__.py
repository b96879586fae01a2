"""What all training jobs share: `run` (a run from start to stop), `state` and `optimizer`,
`logprobs` (teacher forcing), `checkpoint` and `manifest`, `loop` and `stopping`, `metrics`."""
