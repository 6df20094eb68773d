"""The one error of the benchmarks: a measurement that cannot be made or must not be believed."""


class BenchmarkError(Exception):
    """Said to the user in one line; the run ends without figures."""
