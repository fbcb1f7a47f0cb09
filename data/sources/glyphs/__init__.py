"""The default data set: characters drawn from the fonts that matplotlib ships."""

from data.sources.glyphs.source import GlyphSource

__all__ = ["GlyphSource"]
