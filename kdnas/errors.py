"""The one exception that stands for a user's mistake."""


class ConfigError(ValueError):
    """Bad input. The message is one line: the key, its value and what would be allowed."""
