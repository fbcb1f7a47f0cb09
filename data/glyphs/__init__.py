"""Pictures of characters, drawn from the fonts that matplotlib ships."""
