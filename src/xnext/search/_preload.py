"""Imported by the process that trials are forked from: what takes seconds to import is there already.

It leaves the group of the search, since a terminal's signals are for the search, which tells its trials.
"""

import os

import torchmetrics.classification  # noqa: F401

import xnext.search.trial  # noqa: F401

os.setpgrp()
