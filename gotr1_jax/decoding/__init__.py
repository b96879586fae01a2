"""Token-by-token decoding, shared by the policy's sampler and the judge's engine: KV cache, decode
weights, forward pass, guidance, sampling of one token."""
