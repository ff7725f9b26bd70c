"""One file that shows a comparison, a grid or a blind test anywhere.

It works from the disk, without a network and without scripts; with them, pictures can be laid over
each other. CSV and JSON with the same numbers lie beside it.
"""
