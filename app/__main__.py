"""``python -m app`` is ``kindred``."""

import sys

from app.cli import main

sys.exit(main())
