"""Diffusion pipelines on disk and in memory: find, open, compress, check, and draw with them.

sources      from "demo", a folder or a hub id to a checked folder      download: hub ids
denoisers    the denoiser and its layers, without weights
pipelines    load, component, describe                                  generate: one picture
compressor   folder to folder, or in memory     encoding: one layer     partial: resumable work
checkpoint   the format on disk, verify         weights, copying, card: its files
hub          the plug-in with which diffusers opens the format
"""
