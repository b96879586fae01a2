"""The pieces of `gotr1 generate`: its settings, captions and plans, batches, files."""
