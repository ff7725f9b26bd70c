"""Diffusion pipelines on disk and in memory: find, open, compress, check, and draw with them.

sources      from "demo", a folder, a file or a hub id to a checked folder
             download: hub ids     component_files: what of a folder is the model
             weight_sets, texts, parsing, links, bounds: strangers' files, read without harm
opening      a single-file checkpoint: single_file (layouts), tracing, importing
denoisers    the denoiser and its layers, without weights
pipelines    load, component, describe                                  generate: one picture
parts        the components beside the denoiser  text_parts: those of transformers
compressor   folder to folder, or in memory     encoding: one layer     partial: resumable work
             layerwise, assembly: the finished folder   space: on the disk   students, others
trajectory   the denoiser's calls, recorded to be made again            prompts: for which words
teacher      the full-precision model: what layers see, what fine-tuning learns
calibration  moments of layers' inputs: input_groups, gathering, kept_calls, calibration_folder,
             effects (of a step)
finetune     learning, batches
budget       bits by layer: sensitivity, distortion
inventory    what a model is made of, without weights      footprint: memory while it draws,
             counted by live_memory     room: what a loaded pipeline takes of a card
checkpoint   the format on disk, verify         weights, copying, card: its files
hub          the plug-in with which diffusers opens the format, text_hub: transformers
             on_the_fly, text_loading: compressed while it loads        casting
"""

# First of all: the plug-in answers this import with `hub`, which would find a module that asks for
# diffusers' tables by itself half imported.
import diffusers.quantizers as _tables  # noqa: F401  # pyright: ignore[reportUnusedImport]
