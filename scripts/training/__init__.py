"""What the three training scripts share: data, metrics, presets, the run itself and its report."""
