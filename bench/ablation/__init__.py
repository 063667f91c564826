"""The paper's table 1 on the quickstart's model: which of DAPO's parts does what, at equal numbers
of generated tokens."""
