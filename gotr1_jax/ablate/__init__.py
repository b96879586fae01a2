"""`gotr1 ablate`: train variants of a configuration one after the other and compare them."""
