"""One file of kinds and entries for each file of maps."""
