"""The algorithms of `tta search`, one a file; `registry` has their names."""
