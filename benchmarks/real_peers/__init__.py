"""virtring beside other implementations where both do the same work with the same real peer."""
