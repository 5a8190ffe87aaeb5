"""What every test starts from."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

import tests.examples  # noqa: F401  (registers the profiles)
from tests.transcripts import RequireTranscript

# Everything that tests dial is on this machine; the proxies of whoever runs them are for other hosts.
for _name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)


settings.load_profile("tests")  # that of tests/examples.py; `make soak` loads another


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what nodes measure here out of the user's cache, and the user's measurements out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-transcripts",
        action="store_true",
        help="write the transcripts anew, from what happens",
    )


@pytest.fixture
def require_transcript(request: pytest.FixtureRequest) -> RequireTranscript:
    """Fail unless the lines are those of a file; with --update-transcripts, write them to it first."""

    def require(file: Path, lines: Iterable[str]) -> None:
        text = "\n".join(lines) + "\n"
        if request.config.getoption("--update-transcripts"):
            file.write_text(text)
        assert text.splitlines() == file.read_text().splitlines()

    return require


@pytest.fixture(autouse=True)
def plain_logs() -> Iterator[None]:
    """A program under test may configure the log, with a stream that ends with the test."""
    yield
    structlog.reset_defaults()


@dataclass(frozen=True)
class Pair:
    """A self-signed certificate and its key, as PEM."""

    certificate: Path
    key: Path


class Certificates:
    """Makes certificates as an operator would, with openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "issued").mkdir()
        (folder / "issued" / "index.txt").touch()
        self.config = folder / "openssl.cnf"
        self.config.write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/issued/index.txt\nnew_certs_dir={folder}/issued\n"
            "default_md=sha256\npolicy=p\nrand_serial=yes\nunique_subject=no\ncopy_extensions=copy\n[p]\n"
        )

    def make(self, name: str, *, host: str = "localhost", since: str = "20200101", until: str = "20990101") -> Pair:
        """A certificate for `host` that is valid between two days; the same one each time for a name."""
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        if pair.certificate.exists():
            return pair
        request = self.folder / f"{name}.csr"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(pair.key)]
        extensions = ["-addext", f"subjectAltName=DNS:{host}", "-addext", "basicConstraints=critical,CA:TRUE"]
        subject = ["-subj", f"/CN={host}", *extensions]
        self._openssl("req", "-new", *curve, *subject, "-out", str(request))
        dates = ["-startdate", f"{since}000000Z", "-enddate", f"{until}000000Z"]
        sign = ["-batch", "-notext", "-config", str(self.config), "-selfsign", "-keyfile", str(pair.key)]
        self._openssl("ca", *sign, "-in", str(request), *dates, "-out", str(pair.certificate))
        return pair

    def encrypted(self, key: Path) -> Path:
        """The same key behind a password."""
        out = key.with_suffix(".encrypted")
        self._openssl("pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(out))
        return out

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))
