"""The configurations, in a file that travels with a shared checkpoint.

transformers copies the file of a class that is registered for an Auto class next to the weights.
This one imports the installed package by name, so that a checkpoint opens with the package's own
code; without the package, transformers says which one to install.
"""

from reformer_hf import ReformerConfig, ReformerSeq2SeqConfig

__all__ = ["ReformerConfig", "ReformerSeq2SeqConfig"]
