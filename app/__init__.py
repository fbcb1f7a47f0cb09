"""The ``kindred`` command line and what its commands do."""
