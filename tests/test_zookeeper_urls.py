"""ZooKeeper URLs that mean nothing are refused, and what they say of a password is said to nobody."""

from __future__ import annotations

import traceback

import pytest

import distlock
from distlock import ConfigurationError
from distlock.backends.zookeeper._url import Place

from .test_redis_urls import PASSWORDS


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ["zookeeper", "zk", "zookeeper+tls"])
@pytest.mark.parametrize("login", ["", "user"])
def test_no_part_of_a_password_that_is_not_escaped_is_repeated(scheme: str, password: str, login: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Place.parse(f"{scheme}://{login}:{password}@h1:1,h2:1")
    told = "".join(traceback.format_exception_only(caught.value)) + repr(vars(caught.value))
    assert "s3cret" not in told
    assert "%2F %3F %23 %40" in told
    assert caught.value.__suppress_context__ or "s3cret" not in repr(caught.value.__context__)


def test_an_escaped_password_is_taken_and_not_shown() -> None:
    place = Place.parse("zookeeper://us%40er:s3cret%2F%3F%23%40%3A,s3cret@h1,h2:1/apps/shop/")
    assert place.driver["auth_data"] == {("digest", "us@er:s3cret/?#@:,s3cret")}
    assert (place.hosts, place.chroot) == (("h1:2181", "h2:1"), "/apps/shop")
    assert "s3cret" not in place.address + repr(place)
    assert place.address == "zookeeper://h1:2181,h2:1/apps/shop"


def test_hosts_without_a_port_are_at_the_usual_one() -> None:
    assert Place.parse("zk://a,b:,[::1],[::2]:5").hosts == ("a:2181", "b:2181", "[::1]:2181", "[::2]:5")
    assert Place.parse("zk+tls://a/").address == "zookeeper+tls://a:2181"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("zk://", "a host is missing"),
        ("zk://a,,b", "a host is missing"),
        ("zk://h:x", "a port is no number"),
        ("zk://h:0", "a port is no number"),
        ("zk://user@h", "a user and a password"),
        ("zk://h?session_timeout=x", "session_timeout is a number"),
        ("zk://h?session_timeout=nan", "session_timeout is a number"),
        ("zk://h?session_timeout=0.5", "session_timeout is a number"),
        ("zk://h?layout=raw", "layout is one of distlock, kazoo, curator"),
        ("zk://h?acl=mine", "acl is one of open, creator"),
        ("zk://h?auth=kerberos", "auth is one of digest, sasl"),
        ("zk://h?path=locks", "path is a path in ZooKeeper"),
        ("zk://h/a//b", "the chroot is a path"),
        ("zk://h/a/../b", "the chroot is a path"),
        ("zk://h?ca=x", "for TLS: write zookeeper"),
        ("zk+tls://h?ca=/nowhere", "cannot be read"),
        ("zk://h?nothing=1", "no option 'nothing'; there are session_timeout, layout"),
    ],
)
def test_what_means_nothing_is_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        distlock.connect(url)
