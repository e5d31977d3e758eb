"""Tables and plots that several reports share."""
