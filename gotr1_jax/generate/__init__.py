"""The pieces of `gotr1 generate`: its settings, captions and plans, batches, files; and answers
to questions about pictures, for `gotr1 describe` and evaluations."""
