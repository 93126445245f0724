"""HTML reports and terminal views of runs, prepared sets and single records."""
