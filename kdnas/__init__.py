"""kdnas: search for the student architecture that best distils a given teacher."""

__version__ = "0.1.0"
