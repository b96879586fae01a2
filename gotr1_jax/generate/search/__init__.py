"""Test-time search of `gotr1 generate --search`: more draws, of which the best is kept."""
