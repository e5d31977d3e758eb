"""Everything needed to try tta-serve: set-up files and the demo library."""
