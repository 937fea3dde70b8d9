"""Model families: one file for each that differs from BERT; everything else asks `family_of(config)`."""

from kdnas.models.families import albert, deberta, distilbert, electra, roberta, rotary  # noqa: F401 - to register
from kdnas.models.families.base import Family, architecture_of, family_of, register

__all__ = ["Family", "architecture_of", "family_of", "register"]
