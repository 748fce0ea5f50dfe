"""etcd URLs that mean nothing are refused, and what they say of a password is said to nobody."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import trustme

from distlock import ConfigurationError
from distlock.backends.etcd._client import Client
from distlock.backends.etcd._url import Place

from .test_redis_urls import PASSWORDS


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["etcd", "etcd+tls"])
@pytest.mark.parametrize("login", ["", "user"])
def test_no_part_of_a_password_that_is_not_escaped_is_repeated(scheme: str, password: str, login: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Place.parse(f"{scheme}://{login}:{password}@h1:1,h2:1")
    told = "".join(traceback.format_exception_only(caught.value)) + repr(vars(caught.value))
    assert "s3cret" not in told
    assert "%2F %3F %23 %40" in told
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or "s3cret" not in repr(caught.value.__context__)


def test_an_escaped_password_is_taken_and_not_shown() -> None:
    place = Place.parse("etcd://us%40er:s3cret%2F%3F%23%40%3A,s3cret@h1,h2:1")
    client = Client.at(place)
    assert (place.user, place.password) == ("us@er", "s3cret/?#@:,s3cret")
    assert "s3cret" not in place.address + repr(place) + client.address + repr(client) + repr(vars(client))


def test_hosts_without_a_port_are_at_the_usual_one() -> None:
    assert Place.parse("etcd://a,b:,[::1],[::2]:5").endpoints == ("a:2379", "b:2379", "[::1]:2379", "[::2]:5")
    assert Place.parse("etcd+tls://a/").address == "etcd+tls://a:2379"


@pytest.mark.parametrize("hosts", ["", ":2379", "a,,b", "a,", "user:password@"])
def test_a_missing_host_is_said(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="a host is missing"):
        Place.parse(f"etcd://{hosts}")


@pytest.mark.parametrize("port", ["x", "0", "65536", "-1", "١"])
def test_a_port_is_a_number(port: str) -> None:
    with pytest.raises(ConfigurationError, match="a port is no number"):
        Place.parse(f"etcd://h:{port}")


@pytest.mark.parametrize("login", ["user", ":password"])
def test_a_user_without_a_password_is_refused(login: str) -> None:
    with pytest.raises(ConfigurationError, match="a user and a password"):
        Place.parse(f"etcd://{login}@h")


def test_an_option_that_nobody_knows_is_refused() -> None:
    assert Place.parse("etcd://h?layout=raw").options == {"layout": "raw"}
    with pytest.raises(ConfigurationError, match="no option 'lay_out'; there are layout"):
        Place.parse("etcd://h?lay_out=raw")
    with pytest.raises(ConfigurationError, match=r"write etcd\+tls"):
        Place.parse("etcd://h?ca=/x")
    with pytest.raises(ConfigurationError, match="no such option") as caught:
        Place.parse("etcd://h?a&%20s3cret!=1")
    assert "s3cret" not in str(caught.value)


def test_a_path_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no path"):
        Place.parse("etcd://h/0")


def test_files_of_tls_are_read_at_once(tmp_path: Path) -> None:
    pem = tmp_path / "it is.pem"
    trustme.CA().cert_pem.write_to_path(pem)
    place = Place.parse(f"etcd+tls://h?ca={pem}&server_name=x&layout=raw")
    assert place.tls is not None
    assert place.tls.ca == pem.read_bytes()
    assert place.options == {"layout": "raw"}
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match="'ca' cannot be read: No such file"):
        Place.parse(f"etcd+tls://h?ca={tmp_path}/none")
    with pytest.raises(ConfigurationError, match="'ca' holds no PEM"):
        Place.parse(f"etcd+tls://h?ca={tmp_path}/empty")
    with pytest.raises(ConfigurationError, match="go together"):
        Place.parse(f"etcd+tls://h?cert={pem}")
