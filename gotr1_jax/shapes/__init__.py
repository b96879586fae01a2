"""The shapes world: colored shapes on a plain ground, with an exact judge and no outside data.

A policy of a few million parameters learns it on two CPU cores, through the same code as
Janus-Pro.

vocabulary  colors, shapes, sizes, relations, and every number of the geometry
captions    `CaptionSpec` <-> English; the splits train, heldout, unseen
scenes      `Scene`: objects placed so that a caption is true; `relation_score` of two boxes
outlines    the shapes as polygons, what they cover of each pixel, and the parts of a mask
render      scene -> image, uint8 (128, 128, 3)
plans       scene -> plan with boxes, or rationale in words
dataset     `ShapesSource`: (caption, plan, image) by index, a function of (seed, split, index)
tokenizer   trains the byte-level BPE of the embedded checkpoint
cells       codes of image tokens: clusters of what scenes show in the pixels of one token
questions   questions about a scene with one right answer, for `gotr1 eval understanding`
detect      image -> the objects in it, from pixels alone
judge       (caption, plan, image) -> scores sem, spa, ri, pi, verdict
"""
