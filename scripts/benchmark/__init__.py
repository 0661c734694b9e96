"""The benchmark suite: contenders, one runner, one report, one plotter; see README.md."""
