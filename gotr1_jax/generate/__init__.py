"""The pieces of `gotr1 generate`: its settings, captions and plans, batches, files; and answers
to questions about images, for `gotr1 describe` and evaluations."""
