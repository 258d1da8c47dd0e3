"""Talking to the Hugging Face hub: without its remarks, and without waiting for a network that is absent."""

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants


@contextmanager
def hub_access() -> Iterator[None]:
    """Silence the hub client and, where the hub's name cannot be resolved, let it look at its cache alone.

    Otherwise it would try each file again and again for half a minute, with a line on each try.
    """
    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE = offline or not _is_known(constants.ENDPOINT)
    try:
        yield
    finally:
        logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _is_known(address: str) -> bool:
    """Whether there is a way to a web address: through a proxy, which resolves names itself, or its name."""
    if urllib.request.getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(address).hostname, 443))
    except OSError:
        return False
