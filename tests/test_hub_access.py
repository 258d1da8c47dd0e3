import socket

import pytest
from huggingface_hub import constants

from xnext._hub import hub_access


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def unknown(*_):
    raise socket.gaierror("Name or service not known")


@pytest.mark.parametrize(
    ("resolve", "proxies", "offline"),
    [
        (lambda *_: ["address"], {}, False),
        (unknown, {}, True),
        (unknown, {"https": "http://proxy"}, False),
    ],
    ids=["online", "without network", "behind a proxy"],
)
def test_the_cache_alone_is_asked_where_the_hub_is_unknown(monkeypatch, resolve, proxies, offline):
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    with hub_access():
        assert offline == constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ZeroDivisionError), hub_access():
        raise ZeroDivisionError
    assert constants.HF_HUB_OFFLINE
