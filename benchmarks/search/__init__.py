"""Which method should choose the channels? Networks pruned on CIFAR-10 by every method, trained equally long.

Run it with ``python -m benchmarks.search``; what it does is said in docs/benchmarks.md, which it writes.
"""
