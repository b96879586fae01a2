"""Sentences by which a judge denies an object, and sentences that only mention it."""

from __future__ import annotations

import pytest

from gotr1_jax.rewards.multimodal.answers import read_boxes, read_score, read_verdict

DENIALS = """
There is no cat in the image.
There are no cats visible in the picture.
There isn't any cat in this image.
There's no sign of a cat here.
There does not appear to be a cat in the image.
There don't seem to be any dogs in the picture.
There are no instances of "cat" in the image.
There is not a single cat in the image.
There is none to be seen, sorry
The image does not contain any cats.
The picture doesn’t show a red bicycle.
This image contains no cat.
The image you provided does not contain a cat.
In the image there are no cats.
The image doesn't have a cat in it.
No cat is visible in the image.
No cat found.
No objects detected.
No matching objects were found in the image.
None found.
None of these are in the picture.
Not present in the image.
I cannot see any cat in the image.
I don't see a cat in this picture.
I couldn't find any cat in the image.
I was unable to find any cat in the image.
The cat is not present in the image.
The cat does not appear in the image.
The cat is absent from the image.
The cat cannot be seen in the image.
The cat is nowhere to be seen.
Sorry, this image doesn't show any cat.
I'm sorry, but there is no cat in the image.
No, there is no cat in the image.
Based on the image, there is no cat visible.
After examining the picture, I can see no cat.
It seems that there is no cat in the image.
There is no cat in the image. The image shows a dog on a sofa.
There is no cat in the image, but there is a dog.
There is no cat in the image. Therefore, the answer is an empty list: []
The image does not show a cat; it shows a dog.
There is no man with a blue hat in the image.
**There is no cat in the image.**
"""
NO_DENIALS = """
I am not sure where the cat is.
The cat is on the left.
There is no doubt that the cat is on the left.
There is no question that the cat is in the image.
There is no cat on the left. It is on the right.
There is no other cat than the one on the sofa.
There is no cat but the one on the sofa.
There is only one cat in the image.
There is not only a cat in the image.
There is no clear view of the cat.
I cannot provide bounding boxes.
I cannot see the image.
No image was provided.
I am unable to identify people in images.
The cat is not fully visible.
There might be no cat in the image.
There is no cat in the image, except the one in the mirror.
There is no cat in the image. The cat is behind the sofa.
There is no cat in the image, it is on the right.
There is no cat in the foreground.
There is no way to tell where the cat is.
There is no need to search: the cat is in the middle.
It is not true that there is no cat in the image.
The image does not show the whole cat.
Nothing is hiding the cat.
No, the cat is on the left.
No worries! The cat is at the left.
There is no visible cat, I think.
The cat does not have a collar.
The cat is not moving.
There is no cat, but the dog is at [1, 2, 3, 4].
"""


DENIALS_OF_A_NAME = """
Sorry, no cat found.
Unfortunately, no cat is present in the image.
It seems there is no cat in the image.
Upon inspection, no cat is present.
In the image, no cat can be seen.
The picture shows a dog; there is no cat.
The image shows a dog, not a cat.
The image shows a dog on a sofa. There is no cat in the image.
This is a picture of a dog. There is no cat.
The image features a dog and a ball, but no cat.
Since there is no cat in the image, the list is empty.
As there is no cat in the image, I return [].
I cannot provide bounding boxes because there is no cat in the image.
Not in the image.
It's not there.
It isn't in the image.
It is missing from the image.
Cat not found.
cat: none
I have not found a cat.
I was not able to find a cat.
The requested object (cat) is not in the image.
The cat can't be found.
No bounding box found for cat.
The image appears to contain no cat.
There are no cats or dogs in the image.
"""
NO_DENIALS_OF_A_NAME = """
The cat's tail is not visible.
I can't see the cat's face.
There is no cat in the mirror.
There is no single cat, there are two.
There is not one cat but two.
None of the cats are black.
There is no box for the cat because it covers the image.
There is no difficulty finding the cat.
There is no cat here, but there is no difficulty finding the cat there.
No cat found. There are no cats missing.
There are no cats missing.
It is not there but here.
The image shows a cat with no tail.
The image shows a cat. There is no dog.
This is a kitten on a sofa with no tail.
The image shows a dog, not a ball.
"""


def test_denials_of_what_was_searched_for() -> None:
    """Only that it is not there counts: not that a part, a place or another thing is not."""
    for text in DENIALS_OF_A_NAME.strip().split("\n"):
        assert read_boxes(text, "cat") == [], text
    for text in NO_DENIALS_OF_A_NAME.strip().split("\n"):
        assert read_boxes(text, "cat") is None, text
    assert read_boxes("There isn't any kitten missing in this image.", "cat") is None


@pytest.mark.parametrize("name", ["", "cat"])
def test_a_plain_denial_is_an_empty_list_and_a_mention_is_not(name: str) -> None:
    for text in DENIALS.strip().split("\n"):
        assert read_boxes(text, name) == [], text
        assert read_boxes(f"<think>The cat is at [1, 2, 3, 4].</think>{text}", name) == [], text
    for text in NO_DENIALS.strip().split("\n"):
        assert read_boxes(text, name) is None, text


def test_a_name_may_hold_any_words() -> None:
    for name in ("only one left shoe", "cat on the sofa", "no entry sign", "picture"):
        assert read_boxes(f"There is no {name} in the image.", name) == [], name
        assert read_boxes(f"The {name} is on the left.", name) is None, name


THOUGHTS = [
    "<think>{}</think>", "{}</think>", "<thinking>{}</thinking>\n", "<thought>{}</thought>",
    "[THINK]{}[/THINK]", "◁think▷{}◁/think▷", "<seed:think>{}</seed:think>",
    "<THINK>\n{}\n</THINK>",
    "<|begin_of_thought|>{}<|end_of_thought|>\n", "<|START_THINKING|>{}<|END_THINKING|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysis{}assistantfinal", "<|channel>thought\n{}<channel|>", "<reasoning>{}</reasoning>",
    "<think>a</think><think>{}</think>", "<think>{}</think> <answer>",
]  # fmt: skip


@pytest.mark.parametrize("form", THOUGHTS)
def test_a_thought_is_no_answer(form: str) -> None:
    thought = 'Maybe {"score": 3}, score: 4, [1, 2, 3, 4], \\boxed{1}.'
    before = form.format(thought)
    for answer in ('{"score": 7}', '```json\n{"score": 7}\n```', "Score: 7/10", "7"):
        found = read_score(before + answer, 0, 10)
        assert found is not None and found.score == 7, answer
    assert read_boxes(before + "[]") == read_boxes(before + "There is no cat in the image.") == []
    assert read_boxes(before + '[{"bbox_2d": [5, 6, 7, 8]}]') == [(5, 6, 7, 8)]
    assert read_verdict(before + "The hat is missing. \\boxed{0}") == 0
    assert read_score(before, 0, 10) is None and read_verdict(before) is None
    assert read_boxes(before) is None


def test_a_thought_without_an_end_is_no_answer() -> None:
    for text in ("<think>", "◁think▷", "[THINK]", "<|channel|>analysis<|message|>"):
        assert read_score(text + '{"score": 3}', 0, 10) is None
        assert read_boxes(text + "[1, 2, 3, 4]") is None
        assert read_verdict(text + "\\boxed{1}") is None
        found = read_score('{"score": 3}' + text + '{"score": 10}', 0, 10)
        assert found is None or found.score == 3


def test_long_words_do_not_hang_the_reader() -> None:
    words = " ".join(["a" * 38] * 5)
    for text in (f"there is no b {words} {{", f"I cannot see a b {words} {{"):
        assert read_boxes(text, "cat") is None
