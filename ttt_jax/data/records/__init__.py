"""Records and recordings: their formats, the files they are read from, and tasks."""
