"""Pretrained transformers with LSH attention: ``attn_implementation="reformer"``.

``attention_mask`` says which calls are sparse and hands on what is real, ``attention_interface`` is
the attention function and its registration, ``configuring`` changes a model's settings,
``positions`` makes a model longer, ``diagnosis`` says what sparse attention would find in it, and
``language_model_loss`` computes a loss without logits.
"""
