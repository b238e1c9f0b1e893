"""Error rates, their significance, reports and plots of decoded sets.  Imports corpus; never a model or a search."""
