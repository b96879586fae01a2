"""The measures of `grpo.diversity` by name; no device is needed to read them."""

from __future__ import annotations

from collections.abc import Mapping

# Of the samples of one caption.
OF_CAPTIONS: Mapping[str, str] = {
    "distinct_plans": "share of a caption's plans that differ in more than white space",
    "distinct_layouts": "share of a caption's layouts that are distinct",
    "commonest_layout": "share of a caption's plans that have its commonest layout",
    "images": "share of image tokens in which two images of a caption differ",
}
# Of all samples of a step or an evaluation.
OF_ALL: Mapping[str, str] = {
    "commonest_boxes": "share of all plans that have the very same boxes, whatever their names",
}
MEASURES = {**OF_CAPTIONS, **OF_ALL}
# The more of it, the less diverse.
OPPOSITE = ("commonest_layout", "commonest_boxes")
