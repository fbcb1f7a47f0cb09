"""Experiments that the documentation's claims rest on: arms × seeds from a YAML file, one JSON a run."""
