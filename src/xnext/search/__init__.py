"""Architecture search: the space, the trials, the journal, the optimisers, what mattered, the report."""

from xnext.search.config import SearchConfig
from xnext.search.history import History, Record
from xnext.search.search import Search, point_line, write_best
from xnext.search.space import Architecture, Space

__all__ = [
    "Architecture",
    "History",
    "Record",
    "Search",
    "SearchConfig",
    "Space",
    "point_line",
    "write_best",
]
