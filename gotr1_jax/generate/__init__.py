"""`gotr1 generate` (captions in, plans and images out) and `gotr1 describe` (answers to questions
about images)."""
