"""Exact evaluation of models and baselines on one set of items.

`app.commands.evaluate` is its command and `app.reports` draws its results; it imports neither.
"""
