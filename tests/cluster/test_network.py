"""The network of the cluster's tests does what they count on: sites reach each other, and a cut is silent, either way, and heals."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.cluster.network import OWN, Network, Site, cut, mend, open_network
from tests.faults.places import NotHere

SILENT_SECONDS = 0.3


@pytest.fixture
def network() -> Iterator[Network]:
    """Return an empty network."""
    try:
        with open_network() as made:
            yield made
    except NotHere as reason:
        pytest.skip(str(reason))


def listen(site: Site) -> socket.socket:
    """Listen in a site."""
    with site.entered():
        return socket.create_server((site.address, 0))


def connect(site: Site, listening: socket.socket) -> socket.socket:
    """Connect from a site."""
    with site.entered():
        return socket.create_connection(listening.getsockname(), timeout=5)


def test_a_socket_belongs_to_the_site_in_which_it_was_made_and_its_thread_returns(network: Network) -> None:
    """One that listens in one site is reached from another, by its address, and the thread is where it was before."""
    one, other = network.add("one"), network.add("other")
    before = OWN.stat().st_ino
    with listen(one) as listening, connect(other, listening) as connecting:
        accepted, (address, _) = listening.accept()
        with accepted:
            accepted.sendall(b"x")
            assert (b"x", other.address) == (connecting.recv(1), address)
    assert before == OWN.stat().st_ino


def test_a_cut_swallows_packets_and_a_connection_goes_on_after_it(network: Network) -> None:
    """What was written meanwhile comes when the cut is healed: TCP sends it again."""
    one, other, third = network.add("one"), network.add("other"), network.add("third")
    with listen(one) as listening, connect(other, listening) as connecting, connect(third, listening) as beside:
        accepted = [listening.accept()[0] for _ in range(2)]
        cut(one, other)
        connecting.sendall(b"late")
        beside.sendall(b"here")
        of_third = next(link for link in accepted if link.getpeername()[0] == third.address)
        of_other = next(link for link in accepted if link is not of_third)
        assert b"here" == of_third.recv(4)
        of_other.settimeout(SILENT_SECONDS)
        with pytest.raises(TimeoutError):
            of_other.recv(4)
        mend(one, other)
        of_other.settimeout(10)
        assert b"late" == of_other.recv(4)
        for link in accepted:
            link.close()


def test_a_cut_may_be_of_one_way(network: Network) -> None:
    """The other way, data comes through, and only its acknowledgement does not."""
    one, other = network.add("one"), network.add("other")
    with listen(one) as listening, connect(other, listening) as connecting:
        accepted, _ = listening.accept()
        one.drop(other.address)
        connecting.sendall(b"there")
        assert b"there" == accepted.recv(5)
        accepted.sendall(b"back")
        connecting.settimeout(SILENT_SECONDS)
        with pytest.raises(TimeoutError):
            connecting.recv(4)
        one.reach(other.address)
        connecting.settimeout(10)
        assert b"back" == connecting.recv(4)
        accepted.close()
