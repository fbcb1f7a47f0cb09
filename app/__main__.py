"""``python -m app`` runs the same command as ``kindred``."""

import sys

from app.cli import main

sys.exit(main())
