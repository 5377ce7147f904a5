"""The version of the library, and that of the format of its files."""

__version__ = "0.2.0.dev0"

FORMAT = 1  # raised when older versions could not read what is written; what older versions wrote is always read
