"""Models: one file per head, on a common base."""
