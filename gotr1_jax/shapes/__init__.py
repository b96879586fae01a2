"""The shapes world: colored shapes on a plain ground, with an exact judge and no outside data.

A policy of 1-3 M parameters learns it in minutes, through the same code as Janus-Pro.

vocabulary  colors, shapes, sizes, relations, and every number of the geometry
captions    `CaptionSpec` <-> English; the splits train, heldout, unseen
scenes      `Scene`: objects placed so that a caption is true; `relation_score` of two boxes
outlines    the shapes as polygons, what they cover of each pixel, and the parts of a mask
render      scene -> image, uint8 (128, 128, 3)
plans       scene -> plan with boxes, or rationale in words
dataset     `ShapesSource`: (caption, plan, image) by index, a function of (seed, split, index)
tokenizer   trains the byte-level BPE of the embedded checkpoint
questions   questions about a scene with one right answer, for `gotr1 eval understanding`
detect      image -> the objects in it, from pixels alone
judge       (caption, plan, image) -> scores sem, spa, ri, pi, verdict
"""
