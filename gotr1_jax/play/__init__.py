"""`gotr1 play`: a page in the browser on which plans are edited and painted."""
