"""The console: a page for operators. Its files are in `static`, and are served as they are."""
