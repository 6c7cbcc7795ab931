"""Pictures as SVG text that need nothing else: what every plot of the project is drawn with."""
