"""Operations: tensors in, tensors out. This layer imports torch and nothing else.

Shape letters, used everywhere in the package:

=====  =========================================================================
``B``  batch rows
``H``  attention heads
``N``  tokens of the sequence (``M``: tokens of a second sequence)
``D``  head size
``d``  model width (``hidden_size``)
``R``  hash rounds (``num_hashes``)
``nb`` buckets of one hash round (``num_buckets``)
``W``  window: how many earlier (``W_before``) or later (``W_after``) tokens of its
       bucket a token attends to
``C``  chunk length: how many consecutive sorted tokens are processed as one tile
``V``  vocabulary size
=====  =========================================================================
"""
