"""Addresses of pictures never become a way into the server's own network."""

import contextlib
import http.server
import socket
import threading
import time

import pytest
from serving import encoded, hello, server, shown

from sensorium.errors import UserError
from sensorium.serve import prompts
from sensorium.serve.urls import Fetcher, public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:db8::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_that_are_public(address):
    assert public(address)


@pytest.fixture
def site():
    """A plain web server; paths say what it answers."""
    picture, seen = encoded(), []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.headers["Host"], self.path))
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
            elif self.path == "/slow":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):  # its client leaves
                    for _ in range(40):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
            elif self.path == "/large":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(bytes(200_000))
            elif self.path == "/picture?x=1":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(picture)
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    yield web, picture, seen
    web.shutdown()
    web.server_close()


def fetcher(web, names, called, **limits):
    """One whose name server is `names`, and whose connections all end at a local server, without TLS."""

    def connect(address, seconds):
        called.append(address)
        return socket.create_connection(web.server_address, timeout=seconds)

    return Fetcher(
        **{"most": 100_000, "seconds": 5.0, **limits}, resolve=lambda host: names[host].pop(0), connect=connect,
        secured=lambda raw, host: raw,
    )  # fmt: skip


def test_the_address_that_was_checked_is_the_one_that_is_called(site):
    web, picture, seen = site
    called = []
    names = {"good.org": [["1.1.1.1"], ["127.0.0.1"]]}  # a name server that changes its mind is asked once
    assert fetcher(web, names, called).fetch("https://good.org/picture?x=1") == picture
    assert called == ["1.1.1.1"]
    assert seen == [("good.org", "/picture?x=1")]
    assert names == {"good.org": [["127.0.0.1"]]}


@pytest.mark.parametrize(
    ("names", "url", "message"),
    [
        ({"bad.org": [["10.0.0.1"]]}, "https://bad.org/", "not on the public internet"),
        ({"both.org": [["1.1.1.1", "127.0.0.1"]]}, "https://both.org/", "not on the public internet"),
        ({"none.org": [[]]}, "https://none.org/", "not on the public internet"),
        ({"169.254.169.254": [["169.254.169.254"]]}, "https://169.254.169.254/latest", "not on the public internet"),
        ({}, "http://good.org/", "only https"),
        ({}, "https://good.org:8443/", "only https"),
        ({}, "https://user@good.org/", "only https"),
        ({}, "https:///etc/passwd", "only https"),
        ({}, "https://[::1", "no valid address"),
        ({}, "https://good.org/a b", "percent-encoded"),
        ({}, "https://good.org/a\r\nX: y", "percent-encoded"),
    ],
)
def test_addresses_that_are_not_called(site, names, url, message):
    called = []
    with pytest.raises(UserError, match=message):
        fetcher(site[0], names, called).fetch(url)
    assert called == []


@pytest.mark.parametrize("target", ["https://inside.org/", "http://good.org/", "file:///etc/passwd", "//inside.org/x"])
def test_a_redirect_is_held_to_the_same_rules(site, target):
    called = []
    names = {"good.org": [["1.1.1.1"]] * 2, "inside.org": [["192.168.0.1"]]}
    with pytest.raises(UserError, match=r"public internet|only https"):
        fetcher(site[0], names, called).fetch(f"https://good.org/to/{target}")
    assert called == ["1.1.1.1"]


def test_a_redirect_to_what_is_no_address_is_an_error_of_the_request(site):
    names = {"good.org": [["1.1.1.1"]]}
    with pytest.raises(UserError, match="no valid address"):
        fetcher(site[0], names, []).fetch("https://good.org/to/https://[::1")


def test_redirects_end(site):
    web, picture, _ = site
    called = []
    names = {"good.org": [["1.1.1.1"]] * 9}
    assert fetcher(web, names, called).fetch("https://good.org/to//picture?x=1") == picture
    with pytest.raises(UserError, match="more than 3 times"):
        fetcher(web, names, called).fetch("https://good.org/to//to//to//to//picture?x=1")


def test_what_is_too_large_too_slow_or_missing(site):
    def fetch(path, **limits):
        fetcher(site[0], {"good.org": [["1.1.1.1"]]}, [], **limits).fetch(f"https://good.org{path}")

    with pytest.raises(UserError, match="larger than 100,000 bytes"):
        fetch("/large")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than 0\.3 s"):
        fetch("/slow", seconds=0.3)
    assert time.monotonic() - began < 1.5
    with pytest.raises(UserError, match="status 404"):
        fetch("/nothing")


def test_a_server_fetches_where_it_may(site, hosted, monkeypatch):
    web = site[0]
    made = fetcher(web, {"good.org": [["1.1.1.1"]], "inside.org": [["10.0.0.1"]]}, [])
    monkeypatch.setattr(prompts, "Fetcher", lambda most, seconds: made)
    with server([hosted], urls=True) as running:
        messages = shown("https://good.org/picture?x=1")
        answer = running.client.post("/v1/chat/completions", json=hello(messages=messages))
        assert answer.status_code == 200
        answer = running.client.post("/v1/chat/completions", json=hello(messages=shown("https://inside.org/x")))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == ("messages[0].content[0]: its host is not on the public internet")
