"""Properties of both ends of a ring, tried with any pair of implementations."""
