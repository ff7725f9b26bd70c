"""The embedded demo model: its world, its judge, its training and its evaluation."""
