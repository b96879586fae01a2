"""The policy's decoding: `sampler` runs `plan_loop` and `image_loop` on a `token_batch` of prompts,
`image_decoder` turns image tokens into pixels, `answer` answers questions about images."""
