"""Room of the benchmarks: providers, the sweep, its records, plots and comparisons. Only `cli` imports it."""
