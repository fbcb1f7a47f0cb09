"""The experiments behind the documentation's claims: variants × seeds, described in YAML."""
