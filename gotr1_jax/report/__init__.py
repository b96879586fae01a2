"""The HTML page of a run: `gotr1 report`."""
