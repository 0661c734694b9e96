"""Layers: the modules that hold parameters, built on the operations of :mod:`reformer_hf.ops`."""
