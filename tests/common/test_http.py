from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from common.errors import ConfigError
from common.http import Answer, HttpServer


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_paths_are_answered_on_either_family_and_others_are_listed(listen: str) -> None:
    try:
        server = HttpServer(listen, {"/healthz": lambda: Answer(b"well\n")})
    except ConfigError:
        if listen.startswith("["):
            pytest.skip("there is no IPv6 here")
        raise
    try:
        with urlopen(f"http://{server.address}/healthz?full") as reply:
            assert reply.read() == b"well\n"
        with pytest.raises(HTTPError, match="404") as caught:
            urlopen(f"http://{server.address}/")
        with caught.value as answer:
            assert b"/healthz" in answer.read()
        with pytest.raises(ConfigError, match="cannot listen"):
            HttpServer(server.address, {})
    finally:
        server.close()
