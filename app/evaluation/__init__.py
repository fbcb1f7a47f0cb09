"""Exact evaluation: items and models in, metrics of every model beside baselines out.

`app.commands.evaluate` is the command above it; `app.reports` draws what it finds. It imports neither.
"""
