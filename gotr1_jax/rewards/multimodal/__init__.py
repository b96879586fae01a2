"""Judges that read images and text: what they are asked, how answers are read, what is scored."""
