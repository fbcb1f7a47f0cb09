"""Experiments that the documentation's claims rest on: variants × seeds, described in YAML."""
