"""Search: what brings a network to its budget while it trains."""

from hyperprune.search.progress import SearchProgress
from hyperprune.search.search import Search, search_of

__all__ = ["Search", "SearchProgress", "search_of"]
