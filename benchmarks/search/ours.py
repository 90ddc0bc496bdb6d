"""Our methods: a search with each sparsifier, and cuts before any training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice

from torch import Tensor, nn

from benchmarks.search.settings import PUBLISHED_LAMBDA, SHARE, WEIGHT_DECAY
from benchmarks.search.training import Feed, Run, optimizer_of, train_step
from hyperprune import Budget, Search, export_pruned, hyperize, prune
from hyperprune.sparsifiers import PublishedL1, Sparsifier

Maker = Callable[[Run, Feed], nn.Module]  # returns a slim network; takes from the feed the steps it trains in


def unpruned(run: Run, feed: Feed) -> nn.Module:
    """Go on with the dense network."""
    return copy.deepcopy(run.dense)


def searched(sparsifier: Callable[[], Sparsifier], share: float = SHARE) -> Maker:
    """Return a maker that searches with a sparsifier while it trains, in a share of the steps that it may search in."""
    return lambda run, feed: search_with(sparsifier(), run, feed, share)


def seeded(sparsifier: Callable[[int], Sparsifier]) -> Maker:
    """Return a maker whose sparsifier draws by the run's seed."""
    return lambda run, feed: search_with(sparsifier(run.seed), run, feed)


def published(run: Run, feed: Feed) -> nn.Module:
    """Search with the paper's rule, at the paper's lambda for the network."""
    return search_with(PublishedL1(PUBLISHED_LAMBDA.get(run.network, 2e-4)), run, feed)


def search_with(sparsifier: Sparsifier, run: Run, feed: Feed, share: float = SHARE) -> nn.Module:
    """Search for a share of ``search_steps`` and return the slim network."""
    steps = round(share * run.course.search_steps)
    hyper = hyperize(run.dense, run.example)
    optimizer = optimizer_of(hyper.parameter_groups(run.course.lr, WEIGHT_DECAY))
    search = Search(hyper, optimizer, Budget(macs=run.macs), steps, sparsifier=sparsifier)
    hyper.train()
    for batch in islice(feed, steps):
        train_step(hyper, optimizer, batch, run.lesson)
        search.step()
    return export_pruned(hyper)


def by_magnitude(run: Run, feed: Feed) -> nn.Module:
    """Cut the channels of smallest weights at once."""
    return prune(run.dense, run.example, Budget(macs=run.macs), criterion="magnitude")


def at_once(rival: Callable[[nn.Module, Tensor, float, int], nn.Module]) -> Maker:
    """Return a maker that cuts before any training, without looking at the data."""
    return lambda run, feed: rival(run.dense, run.example, run.macs, run.seed)
