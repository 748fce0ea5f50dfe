"""Redis URLs that mean nothing are refused, and what they say of a password is said to nobody."""

from __future__ import annotations

import traceback

import pytest

import distlock
from distlock import ConfigurationError
from distlock.backends.redis import open_client
from distlock.backends.redis._url import Place

ENDS = {
    "redis": "h:1/0",
    "rediss": "h:1/0",
    "unix": "/run/redis.sock?db=1",
    "redis+cluster": "h1:1,h2:1",
    "rediss+cluster": "h1:1,h2:1",
    "redis+sentinel": "h1,h2/main",
    "rediss+sentinel": "h1,h2/main/0",
    "redlock": "h1:1,h2:1,h3:1",
    "redlock+tls": "h1:1,h2:1,h3:1/0",
}
PASSWORDS = [
    f"{start}{delimiter}{end}"
    for delimiter in "/?#"
    for start, end in (("s3cret", "s3cret"), ("12", "s3cret"), ("s3cret", "12"), ("s3cret/", "=s3cret"), ("", "s3cret"))
] + ["12/s3cret/s3cret", "12/s3cret?s3cret#s3cret", "12?db=0&s3cret", "12/s3cret@s3cret", "12?s3cret=1", "12#s3cret"]


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("scheme", ENDS)
@pytest.mark.parametrize("login", ["", "user"])
def test_no_part_of_a_password_that_is_not_escaped_is_repeated(scheme: str, password: str, login: str) -> None:
    with pytest.raises(ConfigurationError, match="%2F %3F %23 %40") as caught:
        distlock.connect(f"{scheme}://{login}:{password}@{ENDS[scheme]}")
    told = "".join(traceback.format_exception_only(caught.value)) + repr(vars(caught.value))
    assert "s3cret" not in told
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or "s3cret" not in repr(caught.value.__context__)


@pytest.mark.parametrize("scheme", ENDS)
def test_an_escaped_password_is_taken_and_not_shown(scheme: str) -> None:
    with distlock.connect(f"{scheme}://user:s3cret%2F%3F%23%40%3A,s3cret@{ENDS[scheme]}") as locks:
        shown = locks.address + repr(locks) + repr(vars(locks._backend))
    assert "s3cret" not in shown


def test_an_option_that_is_no_word_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="no such option") as caught:
        distlock.connect("redis://localhost/0?password=a&%20s3cret!=1")
    assert "s3cret" not in str(caught.value)


def test_a_password_in_an_option_is_not_cut_short_in_silence() -> None:
    with pytest.raises(ConfigurationError, match="%23"):
        distlock.connect("redis://localhost/0?password=one#two")


def test_a_comma_in_a_password_makes_no_list() -> None:
    assert Place.parse("redis://:a,b@h?db=1").hosts == ("h",)


@pytest.mark.parametrize(
    "url",
    [
        "redlock://:1,:2,:3/0",
        "redlock://a,:2,c",
        "redis+sentinel://:26379/main",
        "redis+cluster://:1",
        "redlock://a,,b",
    ],
)
def test_a_port_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="a host is missing"):
        distlock.connect(url)


def test_a_colon_without_a_port_is_the_usual_port() -> None:
    with distlock.connect("redlock://a:,b:,[::1]:/0") as locks:
        assert locks.address == "redlock://a:6379,b:6379,[::1]:6379/0"


@pytest.mark.parametrize("db", ["abc", "1x", "-1", "1.5", "%20", "%D9%A1"])
@pytest.mark.parametrize(
    "start", ["redis://h/", "rediss://h/", "redis+sentinel://h/main/", "redlock://a,b,c/", "redlock+tls://a,b,c/"]
)
def test_a_database_that_is_no_number_is_not_taken_for_0(start: str, db: str) -> None:
    """redis-py ignores it."""
    with pytest.raises(ConfigurationError, match="a database is a number"):
        distlock.connect(start + db)


@pytest.mark.parametrize("url", ["redis://h/1/2", "rediss://h/1/2"])
def test_two_databases_are_not_joined(url: str) -> None:
    """redis-py reads ``/1/2`` as 12."""
    with pytest.raises(ConfigurationError, match="a database is a number"):
        distlock.connect(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_list_of_hosts_is_told_where_it_belongs(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="redlock://"):
        distlock.connect(f"{scheme}://h1,h2/0")


def test_more_replicas_than_anyone_has_are_refused() -> None:
    for url in ("redis://h", "redis+cluster://h", "redis+sentinel://h/main", "unix:///run/redis.sock"):
        with pytest.raises(ConfigurationError, match="at most 1000"):
            distlock.connect(f"{url}?wait_replicas=1001")
        distlock.connect(f"{url}?wait_replicas=1000").close()
    with pytest.raises(ConfigurationError, match="at most 1000"):
        open_client(object(), namespace="default", op_timeout=1.0, wait_replicas=1001)
