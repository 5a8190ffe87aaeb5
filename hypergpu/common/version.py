"""Version of the installed distribution."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the version of the installed distribution; empty in a checkout that is not installed."""
    try:
        return version("hypergpu")
    except PackageNotFoundError:
        return ""
