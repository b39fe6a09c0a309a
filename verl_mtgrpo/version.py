"""The package version, read by the build and by ``mtgrpo --version``."""

__version__ = "0.1.0"
