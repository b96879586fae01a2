"""`gotr1 train sft`. `train` is the loop, `dataset` its batches, `losses` the cross entropy,
`update` the compiled step; `tokenize_images` turns the images of records into token ids."""
