"""Records as figures: pure functions that draw in given colours and say in words what is seen."""
