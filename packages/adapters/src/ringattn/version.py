"""The version of the installed distribution, which pyproject.toml states."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ringattn")
except PackageNotFoundError:  # The sources are on the path, and not installed.
    __version__ = "0+unknown"
