"""The interface between ranks is the one that leads to the peer, whatever this node's name resolves to."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil
import pytest

from funicular.cluster.rendezvous import free_address, interface_towards


def test_the_interface_to_this_node_itself_is_the_loopback() -> None:
    name = interface_towards("127.0.0.1", 29500)
    assert name is not None
    assert "127.0.0.1" in {one.address for one in psutil.net_if_addrs()[name]}


def test_the_interface_to_an_address_of_a_card_is_that_card() -> None:
    cards = {
        one.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family is socket.AF_INET
    }
    assert {address: interface_towards(address, 29500) for address in cards} == cards


def test_a_port_for_ranks_is_none_that_outgoing_connections_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    host, port = free_address()
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert port < first
    with socket.socket() as listener:
        listener.bind((host, port))
