"""Kinds and entries of the zoo, a file for maps that are checked alike."""
