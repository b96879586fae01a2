"""Judges that read images and text: their questions, how answers are parsed, their terms."""
