"""`gotr1 train vq`. `train` is the loop, `losses` the formulas, `update` the compiled step."""
