"""No password is shown, and what is wrong with a URL is said before anyone connects."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapod.redis_url import credentials, masked, read, refusal

PLACES = ("redis://{}@host:6379/0", "rediss://me:{}@host", "unix://me:{}@/run/a.sock", "me:{}@host")


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("unix:///run/valkey.sock", "redis://host:6379/0", "rediss://host?ssl_ca_certs=/a"):
        assert masked(url) == url


def test_the_user_is_shown_and_the_password_is_not() -> None:
    assert masked("redis://:pw@host:1/2") == "redis://:***@host:1/2"
    assert masked("redis://me:pw@host") == "redis://me:***@host"
    assert masked("redis://host/0?username=me&password=pw&db=1").endswith("password=***&db=1")
    assert masked("rediss://host?ssl_password=pw") == "rediss://host?ssl_password=***"


@pytest.mark.parametrize("place", PLACES)
@given(secret=st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: f"x{text}Q7"))
def test_a_password_is_hidden_whether_or_not_it_is_percent_encoded(place: str, secret: str) -> None:
    for written in (secret, quote(secret, safe="")):
        assert written not in masked(place.format(written))


@given(secret=st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_password_that_is_percent_encoded_is_read_back(secret: str) -> None:
    parts = read(f"redis://me:{quote(secret, safe='')}@host:6379/0")
    assert (credentials(parts), parts.hostname) == (("me", secret), "host")


def test_credentials_may_be_options() -> None:
    assert credentials(read("redis://host?username=me&password=p%2Fw")) == ("me", "p/w")
    assert credentials(read("redis://host")) == (None, None)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://host", "it must begin with redis://, rediss:// or unix://"),
        ("host:6379", "it must begin with"),
        ("redis://:a/b@host:6379", "/ is written %2F"),
        ("redis://:a#b@host:6379", "# %23"),
        ("redis://:12/b@host", "percent-encoding"),
        ("redis://host:port", "a port is a number"),
        ("redis://[host", "it cannot be read"),
        ("rediss://host?ssl_cert_reqs=perhaps", "use one of none, optional, required"),
        ("rediss://host?ssl_ca_certs=/nowhere", "/nowhere holds no certificates"),
        ("rediss://host?ssl_keyfile=/nowhere", "ssl_keyfile needs ssl_certfile"),
        ("rediss://host?ssl_certfile=/nowhere", "ssl_certfile=/nowhere and its ssl_keyfile"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_what_to_change(url: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        read(url)
    assert sentence in str(error.value)
    assert "a/b" not in str(error.value) and "a#b" not in str(error.value)


def test_waiting_helps_against_what_no_sentence_is_known_for() -> None:
    assert refusal("LOADING Valkey is loading the dataset in memory") is None
    assert "correct them" in (refusal("WRONGPASS invalid username-password pair") or "")
